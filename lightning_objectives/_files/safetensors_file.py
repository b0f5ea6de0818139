"""Reads a safetensors file."""

from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_objectives._files.intact import check_permission, hint
from lightning_objectives._files.source import Source


class SafetensorsFile(Source):
    """A safetensors file, which is mapped: only the tensors that you read are in memory."""

    def open(self) -> None:
        """Read the header."""
        if self.part is not None:
            raise ValueError(
                f"part={self.part!r}: {self.path} is a safetensors file, which has no parts. Leave it out."
            )
        try:
            check_permission(self.path)
            file: Any = safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{self.path} is truncated or no safetensors file: {error}. Leave it out, or fetch or write it again."
                + hint(self.path)
            ) from error
        self._file = file
        self._dtypes: dict[str, torch.dtype] = {}
        self.metadata = file.metadata() or {}
        self.keys = self.by_plain_name(file.keys())

    def form(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a tensor, without reading it."""
        part = self._file.get_slice(self.keys[name])
        code, shape = part.get_dtype(), tuple(part.get_shape())
        if code not in self._dtypes:  # safetensors gives its own name for the type, but an empty part has torch's
            self._dtypes[code] = (part[:0] if shape and shape[0] else self.tensor(name)).dtype
        return self._dtypes[code], shape

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the memory of the file: never write to it."""
        tensor: Tensor = self._file.get_tensor(self.keys[name])
        return tensor
