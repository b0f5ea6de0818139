"""Runs a module over its training data without a trace, for the statistics of its normalisation layers."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from lightning_objectives._trainer.lightning import isolate_rng


def check_training_data(trainer: Any) -> None:
    """Raise a ``ValueError`` where the training data are not one loader, which can be run through again."""
    loader = trainer.train_dataloader
    if not isinstance(loader, Iterable) or isinstance(loader, (Mapping, list, tuple)) or hasattr(loader, "flattened"):
        raise ValueError(
            f"buffers='recalibrate' runs through the training dataloader again, but it is {type(loader).__name__}; "
            "give a single DataLoader, or use buffers='average' or 'copy'."
        )


def training_pass(trainer: Any, module: Any) -> None:
    """Run ``module(inputs)`` on every training batch of an epoch.

    The random states, those of the loader's own generators, and a running iteration of the loader stay as they are.
    """
    loader = trainer.train_dataloader
    generators = _generators(loader)
    states = [generator.get_state() for generator in generators]
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        loader._iterator = None  # with persistent workers the epoch under way would be started anew
    with isolate_rng():
        for index, batch in enumerate(loader):
            if index >= trainer.num_training_batches:
                break
            batch = trainer.precision_plugin.convert_input(batch)
            batch = module.on_before_batch_transfer(batch, 0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            with trainer.precision_plugin.forward_context():
                module(_inputs(batch))
    for generator, state in zip(generators, states):
        generator.set_state(state)


def joint_pass(trainer: Any, module: Any, norms: Iterable[_BatchNorm]) -> None:
    """:func:`training_pass` on every rank over its own part of the data; ``norms`` get the mean of their statistics."""
    training_pass(trainer, module)
    for norm in norms:
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                statistic.copy_(trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))


def _inputs(batch: Any) -> Any:
    inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
    if not isinstance(inputs, Tensor):
        raise ValueError(
            f"buffers='recalibrate' calls module(inputs) with the batch or its first element, which must be a tensor, "
            f"but got {type(inputs).__name__}. Use buffers='average' or 'copy'."
        )
    return inputs


def _generators(loader: Any) -> list[Any]:
    samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    found = {id(g): g for owner in (loader, *samplers) if (g := getattr(owner, "generator", None)) is not None}
    return list(found.values())
