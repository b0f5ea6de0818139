"""Variants of a user's module, and what the conditions measure of a training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_objectives.testing.conformance.case import Case, Run
from lightning_objectives.testing.conformance.check import Trial

Make = Callable[[], L.LightningModule]
Methods = Callable[[Any], dict[str, Any]]
"""Takes the user's class; returns methods and attributes of a subclass."""


def variant(make: Make, methods: Methods | None = None, prepare: Callable[[Any], Any] | None = None) -> Make:
    """The same module with other methods, and changed once it is made.

    >>> net = variant(L.LightningModule, lambda user: {"name": "a subclass of " + user.__name__})()
    >>> net.name
    'a subclass of LightningModule'
    """

    def build() -> L.LightningModule:
        module = make()
        user = type(module)
        if methods is not None:
            module.__class__ = type(user.__name__, (user,), {"__module__": user.__module__, **methods(user)})
        if prepare is not None:
            prepare(module)
        return module

    return build


def step_of(user: Any) -> Callable[[Any, Any, int], Any]:
    """The user's own training step, whatever it takes."""
    named = "batch_idx" in user.training_step.__code__.co_varnames

    def step(module: Any, batch: Any, batch_idx: int) -> Any:
        return user.training_step(module, batch, batch_idx) if named else user.training_step(module, batch)

    return step


def own(trial: Trial, module: Make, **case: Any) -> Trial:
    """A trial on a module of the condition's own, with data that fit it."""
    settings = {**trial.case.settings, **Case().settings}
    return replace(trial, case=Case(module=module, settings=settings, trainers=trial.case.trainers, **case))


def counters(run: Run) -> list[tuple[str, int]]:
    """The whole numbers in the callbacks' states, by their place: what they count."""
    return [
        (f"{type(callback).__name__}.{path}", value)
        for callback in run.callbacks
        for path, value in _whole_numbers(callback.state_dict())
    ]


def _whole_numbers(value: Any, path: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _whole_numbers(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _whole_numbers(item, f"{path}.{i}")
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path, value
    elif isinstance(value, Tensor) and value.dim() == 0 and not value.is_floating_point():
        yield path, int(value)


def norms_of(module: nn.Module) -> list[Any]:
    """Its BatchNorm layers."""
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def frozen_norms(make: Make) -> Make:
    """The same module, which keeps its BatchNorm in eval mode."""

    def methods(user: Any) -> dict[str, Any]:
        def train(self: Any, mode: bool = True) -> Any:
            user.train(self, mode)
            for norm in norms_of(self):
                norm.eval()
            return self

        return {"train": train}

    return variant(make, methods, lambda module: module.train())


def sgd(*, lr: float = 0.1, **settings: Any) -> Methods:
    """SGD with momentum in the place of the module's own optimizer."""

    def configure_optimizers(self: Any) -> Any:
        return torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9, **settings)

    return lambda user: {"configure_optimizers": configure_optimizers}


def loud(user: Any) -> dict[str, Any]:
    """Ten times the loss at a tenth of the rate, so that what acts on great gradients finds some."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = step_of(user)(self, batch, batch_idx)
        return {**loss, "loss": 10 * loss["loss"]} if isinstance(loss, dict) else 10 * loss

    return {"training_step": training_step, **sgd(lr=0.01)(user)}


class Probe(L.Callback):
    """Calls a function at the start and at the end of each training batch, outside of what is measured."""

    def __init__(self, start: Callable[[Any], Any] | None = None, end: Callable[[Any], Any] | None = None) -> None:
        self.start, self.end = start, end
        self.starts: list[Any] = []
        self.ends: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep what the function says."""
        if self.start is not None:
            self.starts.append(self.start(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep what the function says."""
        if self.end is not None:
            self.ends.append(self.end(pl_module))
