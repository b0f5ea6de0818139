"""Reads checkpoint files of every format tensor by tensor, without running what they may hold."""

import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_objectives._files.intact import check_permission, check_sums, hint
from lightning_objectives._files.names import plain_name

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

ODD_BUFFERS = "buffers that are not finite"
"""The entry of a safetensors header that lists them, as JSON."""


class Source:
    """Opens a checkpoint file and reads its tensors one by one, by plain name.

    The file is mapped: only the tensors that you read are in memory.

    Args:
        path: a ``.safetensors`` file, or one that ``torch.save`` wrote: a Lightning checkpoint or a state dict.

    Raises:
        ValueError: the file cannot be read as weights; the message says why.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint: dict[str, Any] = {}
        """The whole contents of a file of torch, with its ``state_dict``; empty for a safetensors file."""
        self.metadata: Mapping[str, str] = {}
        """The texts in the header of a safetensors file."""
        self.keys: dict[str, str] = {}
        """The file's own name of each tensor by its plain name, without what ``torch.compile`` puts in."""
        self.extra_entries: dict[str, Any] = {}
        """Entries of the state dict that are not tensors, under their own names."""
        if not self.path.is_file():
            reason = "is a directory" if self.path.is_dir() else "does not exist"
            raise ValueError(f"{self.path} {reason}: give a file of weights.")
        if self.path.suffix == ".safetensors":
            self._open_safetensors()
        elif self.path.suffix in TORCH_SUFFIXES:
            self._open_torch()
        else:
            raise ValueError(
                f"{self.path} has the suffix {self.path.suffix!r}, which names no format of weights: it must have one "
                f"of {', '.join(SUFFIXES)}."
            )
        if not self.keys:
            raise ValueError(f"{self.path} holds no tensors: give a file of weights.")

    def _open_safetensors(self) -> None:
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
        self.keys = self._by_plain_name(file.keys())

    def _open_torch(self) -> None:
        try:
            check_sums(self.path)
            # Files from before torch 1.6 are no zip archives, and cannot be mapped.
            contents = torch.load(
                self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path) or None
            )
        except Exception as error:  # torch lets many through: RuntimeError, UnpicklingError, EOFError, ...
            raise ValueError(
                f"{self.path} cannot be read as weights: it is truncated, no checkpoint, or holds more than tensors "
                "and plain values, which could run code. If you trust it, load it yourself and save its weights alone."
                f"{hint(self.path)} ({type(error).__name__}: {error})"
            ) from error
        state = contents.get("state_dict", contents) if isinstance(contents, dict) else None
        if not isinstance(state, dict):
            raise ValueError(
                f"{self.path} holds a {type(contents).__name__}, but must hold a state dict, or a dictionary with one "
                "under 'state_dict'."
            )
        self.checkpoint, self._file = contents, None
        self._tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        unusable = [key for key, value in self._tensors.items() if not isinstance(key, str) or not is_plain(value)]
        if unusable:
            raise ValueError(
                f"{self.path} has tensors that cannot be merged or exported: {unusable[:5]}. They must have names and "
                "values (meta tensors have none), and be neither sparse nor quantized."
            )
        self.keys = self._by_plain_name(self._tensors)
        self.extra_entries = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        if state is contents and self.extra_entries:
            raise ValueError(
                f"{self.path} has no 'state_dict', and entries that are no tensors: {list(self.extra_entries)}. So it "
                "is no state dict itself: give a file of weights."
            )

    def _by_plain_name(self, keys: Iterable[str]) -> dict[str, str]:
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

    @property
    def step(self) -> int | None:
        """The optimizer step: of the checkpoint, of the metadata, or ``step=N`` in the file's name."""
        for step in (
            self.checkpoint.get("global_step"),
            self.metadata.get("global_step"),
            self.metadata.get("step"),
        ):
            if isinstance(step, int) or (isinstance(step, str) and step.isdecimal()):
                return int(step)
        match = re.search(r"step=(\d+)", self.path.name)
        return int(match[1]) if match else None

    @property
    def odd_buffers(self) -> list[str]:
        """The buffers that the file itself says are not finite, as the snapshots of ``MergeCheckpoints`` do."""
        names = json.loads(self.metadata.get(ODD_BUFFERS, "[]"))
        return names if isinstance(names, list) else []

    def form(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a tensor, without reading it."""
        if self._file is None:
            tensor = self._tensors[self.keys[name]]
            return tensor.dtype, tuple(tensor.shape)
        part = self._file.get_slice(self.keys[name])
        code, shape = part.get_dtype(), tuple(part.get_shape())
        if code not in self._dtypes:  # safetensors gives its own name for the type, but an empty part has torch's
            self._dtypes[code] = (part[:0] if shape and shape[0] else self.tensor(name)).dtype
        return self._dtypes[code], shape

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the file's own memory where that is mapped: never write to it."""
        if self._file is None:
            return self._tensors[self.keys[name]].detach()
        tensor: Tensor = self._file.get_tensor(self.keys[name])
        return tensor

    def storage_key(self, name: str) -> tuple[Any, ...]:
        """Equal for two names of one tensor, which only the files of torch can tell."""
        if self._file is not None:
            return (name,)
        tensor = self._tensors[self.keys[name]]
        return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor has values that can be read one by one: it is not sparse, meta or quantized."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)


def number_kind(dtype: torch.dtype) -> tuple[bool, bool]:
    """Equal for two types that hold the same kind of number: real, complex, or whole.

    >>> number_kind(torch.float16) == number_kind(torch.float32), number_kind(torch.float32) == number_kind(torch.int64)
    (True, False)
    """
    return dtype.is_floating_point, dtype.is_complex


def in_order(paths: Iterable[str | Path], *, as_listed: bool = False) -> tuple[list[Source], list[int]]:
    """Open checkpoints of one network, oldest first, and return them with their steps.

    Args:
        paths: the files.
        as_listed: keep the order of ``paths`` and number the files from 0, whatever their steps are.

    Raises:
        ValueError: there is no file, two have the same step, one has no known step, or their tensors do not match.
    """
    with ThreadPoolExecutor() as pool:  # Python's lock is free while checksums are computed
        sources = list(pool.map(Source, paths))
    if not sources:
        raise ValueError("There are no files to merge: give at least one.")
    if not as_listed:
        sources = _by_step(sources)
    for source in sources[:-1]:
        _check_match(source, sources[-1])
    return sources, list(range(len(sources))) if as_listed else [source.step or 0 for source in sources]


def _by_step(sources: list[Source]) -> list[Source]:
    unknown = [str(source.path) for source in sources if source.step is None]
    if unknown:
        raise ValueError(
            f"No step is known of {unknown}, so their order is unknown: neither `global_step`, nor metadata, nor "
            "`step=N` in the name tells it. "
            "Say order='given' (--order given) and list the files from the oldest to the newest."
        )
    ordered = sorted(sources, key=lambda source: source.step or 0)
    steps = [source.step or 0 for source in ordered]
    repeated = sorted({step for step in steps if steps.count(step) > 1})
    if repeated:
        twins = [str(source.path) for source in ordered if source.step in repeated]
        raise ValueError(
            f"{twins} are of the same steps, {repeated}, but each checkpoint must have a step of its own. Leave out "
            "all but one file of each step, or say order='given' (--order given)."
        )
    return ordered


def _check_match(source: Source, newest: Source) -> None:
    missing, extra = newest.keys.keys() - source.keys.keys(), source.keys.keys() - newest.keys.keys()
    if missing or extra:
        raise ValueError(
            f"{source.path} does not match {newest.path}: it lacks {first_names(missing)} and has besides "
            f"{first_names(extra)}. Merge checkpoints of one network only."
        )
    for name in newest.keys:
        (own_dtype, own_shape), (dtype, shape) = source.form(name), newest.form(name)
        if own_shape != shape or number_kind(own_dtype) != number_kind(dtype):
            raise ValueError(
                f"{name} is {own_dtype} {own_shape} in {source.path}, but {dtype} {shape} in {newest.path}. "
                "Merge checkpoints of one network only."
            )


def first_names(names: Iterable[str]) -> str:
    """List names for a message: five, and how many more there are."""
    names = sorted(names)
    return f"{names[:5]} and {len(names) - 5} more" if len(names) > 5 else str(names)
