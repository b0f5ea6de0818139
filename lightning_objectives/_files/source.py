"""The form in which every file of weights is read: tensor by tensor, by plain name."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from mmap import PAGESIZE
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives._files.folders import WEIGHTS, step_of
from lightning_objectives._files.names import plain_name

ODD_BUFFERS = "buffers that are not finite"
"""The entry of a safetensors header that lists them, as JSON."""


class Source(ABC):
    """Reads the tensors of a checkpoint one by one, by plain name.

    Args:
        path: the file or the folder.
        part: the entry of the checkpoint that holds the weights to read, if you choose it.

    Raises:
        ValueError: the file cannot be read as weights; the message says why.
    """

    mapped: ClassVar[bool] = True
    """Whether tensors lie in the file's own memory, and not in that of the process."""

    def __init__(self, path: str | Path, part: str | None = None) -> None:
        self.path = Path(path)
        self.part = part
        self.files = [self.path]
        """All files that are read."""
        self.checkpoint: dict[str, Any] = {}
        """What the checkpoint holds, with or without the weights; empty for a safetensors file."""
        self.place: str | None = None
        """The entry under which a file like this one holds its weights; None if the file is a state dict itself."""
        self.metadata: Mapping[str, str] = {}
        """The texts in the header of a safetensors file."""
        self.keys: dict[str, str] = {}
        """The file's own name of each tensor by its plain name, without what ``torch.compile`` puts in."""
        self.extra_entries: dict[str, Any] = {}
        """Entries of the state dict that are not tensors, under their own names."""
        self.open()
        if not self.keys:
            raise ValueError(f"{self.path} holds no tensors: give a file of weights.")

    @abstractmethod
    def open(self) -> None:
        """Read all but the tensors."""

    @abstractmethod
    def form(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a tensor, without reading it."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """A tensor, in the file's own memory where that is mapped: never write to it."""

    def storage_key(self, name: str) -> tuple[Any, ...]:
        """Equal for two names of one tensor, which only the files of torch can tell."""
        return (name,)

    def touch(self, name: str) -> None:
        """Read a byte of each page of a tensor, so that the disk works while the tensor before is added up."""
        tensor = self.tensor(name)
        if tensor.is_contiguous():
            tensor.reshape(-1).view(torch.uint8)[::PAGESIZE].sum()

    @property
    def step(self) -> int | None:
        """The optimizer step: of the checkpoint, of the metadata, of a folder of Hugging Face's, or in the name."""
        for step in (
            self.checkpoint.get("global_step"),
            self.metadata.get("global_step"),
            self.metadata.get("step"),
        ):
            if isinstance(step, int) or (isinstance(step, str) and step.isdecimal()):
                return int(step)
        if self.path.name in WEIGHTS and step_of(self.path.parent) is not None:
            return step_of(self.path.parent)
        match = re.search(r"step=(\d+)", self.path.name)
        return int(match[1]) if match else None

    @property
    def is_lightning(self) -> bool:
        """Whether it is a checkpoint of Lightning."""
        return "pytorch-lightning_version" in self.checkpoint

    @property
    def odd_buffers(self) -> list[str]:
        """The buffers that the file itself says are not finite, as the snapshots of ``MergeCheckpoints`` do."""
        try:
            names = json.loads(self.metadata.get(ODD_BUFFERS, "[]"))
        except (ValueError, RecursionError):  # Somebody else's entry of this name, or a damaged one, tells nothing.
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def by_plain_name(self, keys: Iterable[str]) -> dict[str, str]:
        """Order the file's own names of the tensors by plain name.

        Raises:
            ValueError: two have the same plain name.
        """
        by_name: dict[str, str] = {}
        for key in keys:
            name = plain_name(key)
            if name in by_name:
                raise ValueError(
                    f"{self.path} has both {by_name[name]!r} and {key!r}, which are one name without what "
                    "torch.compile puts in, so it is not the checkpoint of one network."
                )
            by_name[name] = key
        return by_name


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor has values that can be read one by one: it is not sparse, meta or quantized."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)


def number_kind(dtype: torch.dtype) -> tuple[bool, bool]:
    """Equal for two types that hold the same kind of number: real, complex, or whole.

    >>> number_kind(torch.float16) == number_kind(torch.float32), number_kind(torch.float32) == number_kind(torch.int64)
    (True, False)
    """
    return dtype.is_floating_point, dtype.is_complex


def first_names(names: Iterable[str]) -> str:
    """List names for a message: five, and how many more there are."""
    names = sorted(names)
    return f"{names[:5]} and {len(names) - 5} more" if len(names) > 5 else str(names)
