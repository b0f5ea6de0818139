"""Keeps what a method remembers of each sample, in a loop of your own."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._step.memory import Memory, joined_rows
from lightning_objectives.kinds import Method
from lightning_objectives.signals import signals_among


class SampleMemory:
    """Keeps what a method remembers of each sample of a data set, in a loop of your own.

    It is the memory that the callbacks keep, and gives the same numbers to the bit. If several processes train,
    each calls :meth:`learn` in each step with its own rows, and all remember the rows of all.

    Args:
        method: a method that remembers, such as ``EarlyLearningRegularization()``.
        samples: the number of samples in the data set.
        classes: the number of classes, for a method that remembers a number for each.
        device: where the rows lie: that of the network.
        seed: the seed of rows that begin with random numbers.

    Raises:
        ValueError: a method that remembers nothing, or no ``classes`` where they are needed.

    Example:
        >>> from lightning_objectives.regularizers import EarlyLearningRegularization
        >>> method = EarlyLearningRegularization(momentum=0.5)
        >>> memory = SampleMemory(method, samples=4, classes=2)
        >>> index, logits = torch.tensor([3, 1]), torch.zeros(2, 2)
        >>> term = method(logits, memory.of(index)).mean()
        >>> memory.learn(index, logits=logits)
        >>> memory.of(torch.tensor([0, 1]))["targets"]
        tensor([[0.0000, 0.0000],
                [0.2500, 0.2500]])
    """

    def __init__(
        self,
        method: Method,
        samples: int,
        *,
        classes: int | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        if not getattr(method, "remembers", {}):
            raise ValueError(f"{method} remembers nothing of samples, so it needs no memory.")
        self._method: Any = method
        self._memory = Memory(method, samples, classes=classes, device=torch.device(device), saved={}, seed=seed)

    def of(self, index: Tensor) -> dict[str, Tensor]:
        """The rows of some samples, for the method's ``memory``.

        Raises:
            ValueError: an index is not below the number of samples.
        """
        return self._memory.of(index)

    @property
    def bank(self) -> dict[str, Tensor]:
        """The rows of all samples, for the method's ``memory_bank``; never write to them."""
        return dict(self._memory.rows)

    @torch.no_grad()
    def learn(self, index: Tensor, **signals: Any) -> None:
        """Let the method learn from a step, after its value is computed. Of a sample that comes twice the first counts.

        Args:
            index: (N,) the positions of the samples in the data set.
            signals: what the method's ``learn`` asks for beside the memory, by name: ``logits=logits``.

        Raises:
            TypeError: a signal is missing, or none that it asks for.
            ValueError: the rows do not have the shapes that the method declares.
        """
        parameters = inspect.signature(self._method.learn).parameters.values()
        asked = {*signals_among(parameters, owner=f"{type(self._method).__name__}.learn")} - {"memory", "index"}
        if asked != signals.keys():
            raise TypeError(f"{self._method}.learn asks for {sorted(asked)}, but got {sorted(signals)}.")
        every = {**signals, "memory": self.of(index), "index": index}
        learned = self._method.learn(**{parameter.name: every[parameter.name] for parameter in parameters})
        self._memory.write(*joined_rows(index, learned))

    def state_dict(self) -> dict[str, Tensor]:
        """The rows of all samples, by name."""
        return dict(self._memory.rows)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: the state is of another method or another data set; nothing is loaded then.
        """
        self._memory.load(state)
