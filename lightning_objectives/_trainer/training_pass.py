"""Runs a module over its training data without a trace, to estimate the statistics of its BatchNorm layers."""

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from lightning_objectives._trainer.lightning import isolate_rng
from lightning_objectives._trainer.loaders import generators_of


def check_training_data(trainer: Any) -> None:
    """Check that the training data come from one loader, which can be read again.

    Raises:
        ValueError: they do not.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, Iterable) or isinstance(loader, (Mapping, list, tuple)) or hasattr(loader, "flattened"):
        raise ValueError(
            f"buffers='recalibrate' runs through the training dataloader again, but it is {type(loader).__name__}, "
            "which holds several loaders or cannot be read twice. Use one DataLoader, or buffers='average' or 'copy'."
        )


def training_pass(trainer: Any, module: Any) -> None:
    """Run ``module(inputs)`` on every training batch of an epoch.

    The global random states, those of the loader's own generators, and a running iteration of the loader do not change.
    """
    loader = trainer.train_dataloader
    generators = generators_of(loader)
    states = [generator.get_state() for generator in generators]
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        loader._iterator = None  # With persistent workers, iterating would restart the epoch that is running.
    with isolate_rng():
        for batch in on_device(trainer, module, islice(loader, int(min(trainer.num_training_batches, sys.maxsize)))):
            with trainer.precision_plugin.forward_context():
                module(_inputs(batch))
    for generator, state in zip(generators, states):
        generator.set_state(state)


def on_device(trainer: Any, module: Any, batches: Iterable[Any]) -> Iterator[Any]:
    """Bring each batch to the device as the Trainer does, with the module's own hooks."""
    for batch in batches:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module.on_before_batch_transfer(batch, 0)
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def joint_pass(trainer: Any, module: Any, norms: Iterable[_BatchNorm]) -> None:
    """Run :func:`training_pass` on each rank over its own data, and average the statistics of ``norms``."""
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
