"""Shows what callbacks find in a Lightning module, and which of them apply to it, before any training."""

import copy
from functools import partial
from typing import Any

import torch

from lightning_objectives._trainer.callback import Callback
from lightning_objectives._trainer.random import Streams
from lightning_objectives.inspection.batches import Data
from lightning_objectives.inspection.facts import Facts, facts_of
from lightning_objectives.inspection.planning import plan_of
from lightning_objectives.inspection.report import Inspection
from lightning_objectives.inspection.trial import Trials
from lightning_objectives.inspection.verdicts import Judge, Verdict, beside

__all__ = ["Facts", "Inspection", "Verdict", "inspect"]


def inspect(module: Any, batch: Any = None, trainer: Any = None) -> Inspection:
    """Show what callbacks find in a module, and which of them apply to it, before any training.

    One batch goes through the step of a copy of your module for each callback: yours, and every other one of this
    package with one of its methods. You see the criterion, the head, the samples and what else matters, and for each
    callback whether it applies, or why not, in its own words.

    Your module, its optimizers and the random streams are the same afterwards, to the bit, and nothing is written; also
    if the step raises an error. What your step reaches outside of the module (files, global variables) is not copied.

    Args:
        module: the LightningModule, or a function that makes it, if it cannot be copied.
        batch: a batch as the training step gets it from the data loader; or the data loader, or the data module. By
            default the module's own loaders.
        trainer: the Trainer of your training. Its callbacks, its precision and its strategy are looked at; it runs
            nothing. By default, one device and no callbacks of yours.

    Returns:
        what was found; ``print`` it, or read its ``facts`` and ``verdicts``.

    Raises:
        ValueError: the module cannot be copied, or the loader has no batch.
        Exception: the step itself fails on this batch, without any callback.

    Networks that are compiled run uncompiled, because compiling one again for each callback would take minutes.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> import lightning as L
        >>> class Net(L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = torch.nn.Linear(8, 3)
        ...     def training_step(self, batch, batch_idx):
        ...         return F.cross_entropy(self.fc(batch[0]), batch[1])
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> found = inspect(Net(), [torch.randn(5, 8), torch.zeros(5, dtype=torch.long)])
        >>> found.facts.criterion.name, found.facts.criterion.about, found.facts.head.path
        ('cross_entropy', 'one class of several', 'fc')
        >>> [verdict.applies for verdict in found.verdicts if verdict.callback.startswith("ReweightSamples")]
        [True]
    """
    streams = Streams(_device(module, trainer))
    try:
        trials = trials_of(module, batch, trainer)
        plain = trials.plain()
        facts = facts_of(trials, plain)
        judge = Judge(trials, plain, facts, getattr(trainer, "strategy", None))
        yours = callbacks_of(trials.make(), trainer)
        verdicts = [judge.judge([callback, *beside(callback, yours)], yours=True) for callback in yours]
        together = judge.judge(yours, yours=True, name="all") if len(yours) > 1 else None
        return Inspection(facts, (*verdicts, *judge.others(yours)), together)
    finally:
        streams.restore()


def plan(module: Any, data: Any = None, trainer: Any = None) -> str:
    """Say what the callbacks of a training would be plugged into, without a training step.

    Args:
        module: the LightningModule, or a function that makes it.
        data: the data loader or the data module; by default the module's own loaders.
        trainer: the Trainer of the training, which runs nothing.

    Returns:
        the line that a fit tells of its training step, and one for each callback that acts elsewhere.

    Raises:
        Exception: the refusal of a callback, or an error of the module's setup.
    """
    streams = Streams(_device(module, trainer))
    try:
        trials = trials_of(module, data, trainer)
        callbacks = callbacks_of(trials.make(), trainer)
        lines = plan_of(trials, callbacks, getattr(trainer, "strategy", None)) if callbacks else []
        return "\n".join(lines) or "There is no callback of lightning_objectives: the training is the plain one."
    finally:
        streams.restore()


def trials_of(module: Any, data: Any = None, trainer: Any = None) -> Trials:
    """Trials of a module, or of what a function makes, on the device of a training and with its precision."""
    make = partial(_copied, module) if hasattr(module, "training_step") else module
    return Trials(make, _settings(_device(module, trainer), trainer), Data(data))


def _copied(module: Any) -> Any:
    try:
        copied = copy.deepcopy(module)
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), and inspect looks at copies "
            "only, so that your module stays as it is. Pass a function that makes the module: "
            f"inspect(lambda: {type(module).__name__}(...), batch)."
        ) from error
    for part, other in zip(module.modules(), copied.modules()):
        if getattr(part, "_compiled_call_impl", None) is not None:  # A copy is not compiled in place.
            other.compile()
    return copied


def _device(module: Any, trainer: Any) -> torch.device:
    if trainer is not None:
        return torch.device(trainer.strategy.root_device)
    return torch.device(getattr(module, "device", "cpu"))


def _settings(device: torch.device, trainer: Any) -> dict[str, Any]:
    """The words of a Trainer for this device, and for the numbers that the user's computes with."""
    where: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
    if device.type != "cpu":
        where = {"accelerator": device.type, "devices": [device.index or 0]}
    if trainer is None:
        return where
    return where | {n: getattr(trainer, n) for n in ("precision", "gradient_clip_val", "gradient_clip_algorithm")}


def callbacks_of(module: Any, trainer: Any) -> list[Any]:
    """This package's callbacks of a training, also those that the module brings."""
    brought = module.configure_callbacks()
    given = [*getattr(trainer, "callbacks", ()), *(brought if isinstance(brought, (list, tuple)) else [brought])]
    found = [getattr(callback, "carried", callback) for callback in given if isinstance(callback, Callback)]
    return list(dict.fromkeys(found))
