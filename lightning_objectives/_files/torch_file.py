"""Reads a file that ``torch.save`` wrote."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._files.intact import check_sums, hint
from lightning_objectives._files.parts import holds_tensors, usual_part, weights_key
from lightning_objectives._files.source import Source, is_plain


class TorchFile(Source):
    """A state dict, or a checkpoint with one, in a file of torch, which is mapped."""

    def open(self) -> None:
        """Read all but the values of the tensors, after a look at the checksums."""
        contents = load_as_data(self.path)
        key = weights_key(contents, self.path, self.part) if isinstance(contents, dict) else None
        state = contents if key is None else contents[key]
        if not isinstance(state, dict):
            raise ValueError(
                f"{self.path} holds a {type(contents).__name__}, but must hold a state dict, or a dictionary with one "
                "under 'state_dict'."
            )
        self._tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        unusable = [key for key, value in self._tensors.items() if not isinstance(key, str) or not is_plain(value)]
        if unusable:
            raise ValueError(
                f"{self.path} has tensors that cannot be merged or exported: {unusable[:5]}. They must have names and "
                "values (meta tensors have none), and be neither sparse nor quantized."
            )
        self.keys = self.by_plain_name(self._tensors)
        self.extra_entries = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        if key is None and self.extra_entries:
            raise ValueError(
                f"{self.path} has no 'state_dict', and entries that are no tensors: {list(self.extra_entries)}. So it "
                "is no state dict itself: give a file of weights."
            )
        if key is not None:
            self.checkpoint = contents
            self.place = usual_part([k for k, v in contents.items() if holds_tensors(v)], key)

    def form(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a tensor, without reading it."""
        tensor = self._tensors[self.keys[name]]
        return tensor.dtype, tuple(tensor.shape)

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the memory of the file: never write to it."""
        return self._tensors[self.keys[name]].detach()

    def storage_key(self, name: str) -> tuple[Any, ...]:
        """Equal for two names of one tensor."""
        tensor = self._tensors[self.keys[name]]
        return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


def load_as_data(path: Path) -> Any:
    """Load a file of torch, mapped, without running what it may hold.

    Raises:
        ValueError: it is damaged, or holds more than plain values.
    """
    try:
        check_sums(path)
        # Files from before torch 1.6 are no zip archives, and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except Exception as error:  # torch lets many through: RuntimeError, UnpicklingError, EOFError, ...
        raise ValueError(
            f"{path} cannot be read as weights: it is truncated, no checkpoint, or holds more than tensors "
            "and plain values, which could run code. If you trust it, load it yourself and save its weights alone."
            f"{hint(path)} ({type(error).__name__}: {error})"
        ) from error
