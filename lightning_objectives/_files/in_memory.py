"""Weights in memory, in the form in which files are read."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_objectives._files.source import Source


class InMemory(Source):
    """Tensors by name.

    Args:
        tensors: the tensors, which are not copied.
        path: what messages call them.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: str = "memory") -> None:
        self._tensors = dict(tensors)
        super().__init__(path)

    def open(self) -> None:
        """List the names."""
        self.keys = self.by_plain_name(self._tensors)

    def form(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a tensor."""
        tensor = self._tensors[self.keys[name]]
        return tensor.dtype, tuple(tensor.shape)

    def tensor(self, name: str) -> Tensor:
        """The tensor itself: never write to it."""
        return self._tensors[self.keys[name]]
