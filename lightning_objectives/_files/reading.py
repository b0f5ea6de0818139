"""Checkpoint files of every format, read tensor by tensor and without running what they may hold."""

import re
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_objectives._files.intact import check_sums, hint
from lightning_objectives._files.names import plain_name

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


class Source:
    """An opened checkpoint: its tensors by plain name, its step where it tells one, and what else it holds.

    Nothing is in memory but what is asked for: the files are mapped.

    Args:
        path: a ``.safetensors`` file, or one that ``torch.save`` wrote: a Lightning checkpoint or a state dict.

    Raises:
        ValueError: the file cannot be read as weights; the message says why.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.frame: dict[str, Any] = {}
        """The whole checkpoint of a file of torch, its ``state_dict`` included."""
        self.keys: dict[str, str] = {}
        """The file's own name for each plain name: without what ``torch.compile`` puts in."""
        self.others: dict[str, Any] = {}
        """Entries of the state dict that are no tensors, under their own names."""
        if not self.path.is_file():
            why = "is a directory" if self.path.is_dir() else "does not exist"
            raise ValueError(f"{self.path} {why}: give a file of weights.")
        if self.path.suffix == ".safetensors":
            self._open_safetensors()
        elif self.path.suffix in TORCH_SUFFIXES:
            self._open_torch()
        else:
            known = ", ".join((".safetensors", *TORCH_SUFFIXES))
            raise ValueError(f"{self.path} has the suffix {self.path.suffix!r}, but must have one of {known}.")
        if not self.keys:
            raise ValueError(f"{self.path} holds no tensors.")

    def _open_safetensors(self) -> None:
        try:
            self.path.open("rb").close()  # of what may not be opened safetensors says that it is missing
            file: Any = safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{self.path} is truncated or no safetensors file: {error}. Take it out, or fetch or write it again."
                + hint(self.path)
            ) from error
        self._file = file
        self._dtypes: dict[str, torch.dtype] = {}
        self.metadata: Mapping[str, str] = file.metadata() or {}
        self.keys = self._by_plain_name(file.keys())

    def _open_torch(self) -> None:
        try:
            check_sums(self.path)
            # Files from before torch 1.6 are no zip archives, and cannot be mapped.
            frame = torch.load(
                self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path) or None
            )
        except Exception as error:  # torch raises what comes: RuntimeError, UnpicklingError, EOFError, ...
            raise ValueError(
                f"{self.path} cannot be read as weights: it is truncated, no checkpoint, or holds more than tensors "
                f"and plain values, which could run code. If you trust it, save its weights alone anew."
                f"{hint(self.path)} ({type(error).__name__}: {error})"
            ) from error
        state = frame.get("state_dict", frame) if isinstance(frame, dict) else None
        if not isinstance(state, dict):
            raise ValueError(f"{self.path} holds a {type(frame).__name__}, but must hold a state dict, or have one.")
        self.frame, self.metadata = frame, {}
        self._file = None
        self._tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        odd = [key for key, value in self._tensors.items() if not isinstance(key, str) or not is_plain(value)]
        if odd:
            raise ValueError(
                f"{self.path} has tensors that cannot be merged or exported: {odd[:5]}. They must have names, values "
                "(meta tensors have none), and be neither sparse nor quantized."
            )
        self.keys = self._by_plain_name(self._tensors)
        self.others = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        if state is frame and self.others:
            raise ValueError(f"{self.path} has no 'state_dict', and entries that are no tensors: {list(self.others)}.")

    def _by_plain_name(self, keys: Iterable[str]) -> dict[str, str]:
        by_name: dict[str, str] = {}
        for key in keys:
            name = plain_name(key)
            if name in by_name:
                raise ValueError(
                    f"{self.path} has both {by_name[name]!r} and {key!r}, which are one name without what "
                    "torch.compile puts in: it is the checkpoint of no network."
                )
            by_name[name] = key
        return by_name

    @property
    def step(self) -> int | None:
        """The optimizer step: of the checkpoint, of the metadata, or ``step=N`` in the file's name."""
        for found in (self.frame.get("global_step"), self.metadata.get("global_step"), self.metadata.get("step")):
            if isinstance(found, int) or (isinstance(found, str) and found.isdecimal()):
                return int(found)
        named = re.search(r"step=(\d+)", self.path.name)
        return int(named[1]) if named else None

    def form(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a tensor."""
        if self._file is None:
            tensor = self._tensors[self.keys[name]]
            return tensor.dtype, tuple(tensor.shape)
        part = self._file.get_slice(self.keys[name])
        called, shape = part.get_dtype(), tuple(part.get_shape())
        if called not in self._dtypes:  # a name of safetensors' own; an empty part has torch's
            self._dtypes[called] = (part[:0] if shape and shape[0] else self.tensor(name)).dtype
        return self._dtypes[called], shape

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the file's own memory where that is mapped: never write to it."""
        if self._file is None:
            return self._tensors[self.keys[name]].detach()
        tensor: Tensor = self._file.get_tensor(self.keys[name])
        return tensor

    def place(self, name: str) -> tuple[Any, ...]:
        """Equal for two names that are one tensor, which only torch's files can tell."""
        if self._file is not None:
            return (name,)
        tensor = self._tensors[self.keys[name]]
        return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has values of its own that lie in memory one behind the other, in some order."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)


def in_order(paths: Iterable[str | Path], *, given: bool = False) -> tuple[list[Source], list[int]]:
    """Open files, oldest first, with their steps; with ``given`` in the order given, numbered from 0.

    Raises:
        ValueError: fewer than one file, a file twice, an unknown or repeated step, or tensors that do not match.
    """
    with ThreadPoolExecutor() as pool:  # checksums are computed without Python's lock
        sources = list(pool.map(Source, paths))
    if not sources:
        raise ValueError("There are no files to merge.")
    if given:
        steps = list(range(len(sources)))
    else:
        unknown = [str(source.path) for source in sources if source.step is None]
        if unknown:
            raise ValueError(
                f"No step is known of {unknown}: neither `global_step`, nor metadata, nor `step=N` in the name. "
                "Say order='given' (--order given) and list the files from the oldest to the newest."
            )
        sources.sort(key=lambda source: source.step or 0)
        steps = [source.step or 0 for source in sources]
        repeated = sorted({step for step in steps if steps.count(step) > 1})
        if repeated:
            at = [str(source.path) for source in sources if source.step in repeated]
            raise ValueError(f"{at} are of the same steps, {repeated}: each checkpoint has a place in time of its own.")
    for source in sources[:-1]:
        _check_match(source, sources[-1])
    return sources, steps


def _check_match(source: Source, newest: Source) -> None:
    missing, extra = newest.keys.keys() - source.keys.keys(), source.keys.keys() - newest.keys.keys()
    if missing or extra:
        raise ValueError(
            f"{source.path} does not match {newest.path}: it lacks {_some(missing)} and has besides {_some(extra)}. "
            "Merge checkpoints of one network only."
        )
    for name in newest.keys:
        (mine, my_shape), (dtype, shape) = source.form(name), newest.form(name)
        if my_shape != shape or _kind(mine) != _kind(dtype):
            raise ValueError(
                f"{name} is {mine} {my_shape} in {source.path}, but {dtype} {shape} in {newest.path}. "
                "Merge checkpoints of one network only."
            )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{names[:5]} and {len(names) - 5} more" if len(names) > 5 else str(names)


def _kind(dtype: torch.dtype) -> tuple[bool, bool]:
    return dtype.is_floating_point, dtype.is_complex
