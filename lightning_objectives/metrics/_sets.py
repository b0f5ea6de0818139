"""Means over prediction sets."""

import torch
from torch import Tensor

from lightning_objectives.metrics._sums import Sums


class _MeanOfSets(Sums):
    """The mean of a value per set, which a subclass defines as ``values``; NaN without a row."""

    def __init__(self) -> None:
        super().__init__()
        self._add_sum("count", torch.tensor(0))
        self._add_sum("total", torch.tensor(0))

    def values(self, sets: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define values(sets, target), but does not.")

    def update(self, sets: Tensor, target: Tensor) -> None:
        """Add (N, C) bool sets and their (N,) classes."""
        if sets.dtype != torch.bool or sets.dim() != 2 or target.shape != sets.shape[:1]:
            raise ValueError(
                f"sets {tuple(sets.shape)} of {sets.dtype} with target {tuple(target.shape)} must be (N, C) bool and "
                "(N,) classes."
            )
        self._add(count=len(target), total=self.values(sets, target.long()).sum())

    def compute(self) -> Tensor:
        """The mean over all rows, () float32."""
        return self._sum("total") / self._sum("count")


class SetCoverage(_MeanOfSets):
    """The share of the sets that hold their target."""

    def values(self, sets: Tensor, target: Tensor) -> Tensor:
        """(N,) whether the target is in its set."""
        return sets.gather(1, target[:, None]).squeeze(1)


class SetSize(_MeanOfSets):
    """The mean number of classes in a set."""

    def values(self, sets: Tensor, target: Tensor) -> Tensor:
        """(N,) sizes."""
        return sets.sum(1)
