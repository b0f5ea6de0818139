"""Lets a callback of the step keep what its method remembers of each sample."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._step.member import Member
from lightning_objectives._step.memory import Memory, joined_rows, samples_in
from lightning_objectives.signals import signals_among

_PREFIX = "memory."
"""What the names of the rows begin with in a callback's state."""


class Remembering(Member):
    """A callback whose method may remember something of each sample, see :attr:`Method.remembers`."""

    samples: int | None = None
    seed: int = 0
    _memory: Memory | None = None
    """What the method remembers, from the first step on."""
    _loaded: Mapping[str, Tensor] = {}
    """What the checkpoint that the training resumes holds of it."""

    @property
    def remembers(self) -> bool:
        """Whether the method remembers something of each sample."""
        return bool(getattr(self.method, "remembers", {}))

    def forget(self) -> None:
        """Begin anew."""
        self._memory, self._loaded = None, {}

    def memory_in(self, step: Any, classes: int | None = None) -> Memory:
        """What the method remembers; the first step makes it.

        Args:
            step: the step.
            classes: C, if the step does not know its criterion's call yet.

        Raises:
            ValueError: the number of samples is unknown, or another callback mixes samples.
        """
        if self._memory is None:
            plan, method = step.plan, self.method
            rival = next((member for member in plan.members if member.place == "transform"), None)
            if rival is not None:
                raise ValueError(
                    f"{method} remembers each sample, but {type(rival).__name__}({rival.method}) mixes samples: what "
                    "the method would learn belongs to none of them. Remove one of the two."
                )
            samples = samples_in(plan.trainer.train_dataloader) if self.samples is None else self.samples
            if classes is None and step.call is not None:
                classes = step.get("logits").shape[1]
            device = plan.module.device
            self._memory = Memory(method, samples, classes=classes, device=device, saved=self._loaded, seed=self.seed)
        return self._memory

    def learn(self, step: Any, signals: Mapping[str, Any], *, of_all_ranks: bool = False) -> None:
        """Let the method learn from this step; what it has learned is written when the step is over.

        Args:
            step: the step.
            signals: what the method got.
            of_all_ranks: whether these are the rows of all ranks.
        """
        if not self.remembers or (self, "learned") in step.of_batch:
            return  # A second pass over a batch finds, and leaves, what the first has found.
        method: Any = self.method
        parameters = inspect.signature(method.learn).parameters.values()
        names = {*signals_among(parameters, owner=f"{type(method).__name__}.learn"), "index"}
        found = {name: signals[name] if name in signals else self.signal(name, step) for name in names}
        asked = {parameter.name: found[parameter.name] for parameter in parameters}
        with torch.no_grad():
            step.of_batch[self, "learned"] = found["index"], method.learn(**asked), of_all_ranks

    def finish_batch(self, of_batch: Mapping[Any, Any]) -> None:
        """Write what the method has learned from a batch, the same on every rank."""
        if (self, "learned") in of_batch:
            assert self._memory is not None
            index, learned, of_all_ranks = of_batch[self, "learned"]
            if not of_all_ranks:
                index, learned = joined_rows(index, learned)
            self._memory.write(index, learned)

    def saved_rows(self) -> dict[str, Tensor]:
        """What the callback's state holds of it."""
        rows = self._loaded if self._memory is None else self._memory.rows
        return {f"{_PREFIX}{name}": tensor for name, tensor in rows.items()}

    def load_rows(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Take the rows out of a callback's state, and return what is left of it."""
        self._loaded = {n.removeprefix(_PREFIX): rows for n, rows in state.items() if n.startswith(_PREFIX)}
        return {name: value for name, value in state.items() if not name.startswith(_PREFIX)}
