"""Reads a folder of ``torch.distributed.checkpoint``, into which FSDP2 saves, without running what it may hold."""

import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata

from lightning_objectives._files.folders import DISTRIBUTED
from lightning_objectives._files.intact import check_sums, hint
from lightning_objectives._files.parts import choose_part, usual_part
from lightning_objectives._files.source import Source, first_names, is_plain
from lightning_objectives._files.torch_file import load_as_data

_META = "meta.pt"
"""Where Lightning writes what it does not shard."""
_CLASSES: dict[tuple[str, str], Callable[..., Any]] = {
    (cls.__module__, cls.__qualname__): cls
    for cls in (
        metadata.Metadata, metadata.MetadataIndex, metadata.TensorStorageMetadata, metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata, metadata.TensorProperties, metadata.StorageMeta, metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo, torch.Size,
    )
}  # fmt: skip
_CLASSES["torch.serialization", "_get_layout"] = torch.serialization._get_layout
_CLASSES |= {("pathlib", name): PurePath for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")}


class DistributedFolder(Source):
    """A folder whose tensors lie in pieces, which are put together when you read the tensor."""

    mapped = False

    def open(self) -> None:
        """Read which tensors there are, and where their pieces lie."""
        entries = _entries(self.path)
        parts = sorted({e.part for e in entries if e.part is not None and e.dtype is not None})
        key = choose_part(parts, self.path, self.part)
        deeper = [f"{e.part}.{e.name}" for e in entries if key is not None and str(e.part).startswith(f"{key}.")]
        if deeper:
            raise ValueError(
                f"{self.path} holds more in {key!r} than tensors by name: {first_names(deeper)}. Save weights alone."
            )
        chosen = {e.name: e for e in entries if e.part == key}
        self._entries = {name: e for name, e in chosen.items() if e.dtype is not None}
        objects = {name: e for name, e in chosen.items() if e.dtype is None}
        if key is None and objects:
            raise ValueError(
                f"{self.path} has no 'state_dict', and entries that are no tensors: {first_names(objects)}. So it is "
                "no state dict itself: give a folder of weights."
            )
        self.keys = self.by_plain_name(self._entries)
        self.extra_entries = {name: e.pieces[0].read() for name, e in objects.items()}
        self.files = [self.path / DISTRIBUTED, *sorted({p.file for e in entries for p in e.pieces})]
        meta = self.path / _META
        self.checkpoint = _as_dict(meta) if meta.is_file() else {}
        self.place = "state_dict" if self.is_lightning else key and usual_part(parts, key)

    def form(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a tensor, without reading it."""
        entry = self._entries[self.keys[name]]
        assert entry.dtype is not None
        return entry.dtype, entry.shape

    def tensor(self, name: str) -> Tensor:
        """Put a tensor together, in memory.

        Raises:
            ValueError: a piece is damaged, or not what the folder says.
        """
        entry = self._entries[self.keys[name]]
        whole = torch.empty(entry.shape, dtype=entry.dtype)
        for piece in entry.pieces:
            values = piece.read()
            if not isinstance(values, Tensor) or not is_plain(values):
                raise ValueError(f"{piece.file} holds something else than the piece of {name} that {self.path} names.")
            if (values.dtype, tuple(values.shape)) != (entry.dtype, piece.shape):
                raise ValueError(
                    f"{piece.file} holds {values.dtype} {tuple(values.shape)} as a piece of {name}, but {self.path} "
                    f"says {entry.dtype} {piece.shape}: it is damaged. Leave this checkpoint out."
                )
            if len(entry.pieces) == 1:
                return values.detach()
            whole[tuple(slice(a, a + n) for a, n in zip(piece.start, piece.shape))] = values
        return whole

    def touch(self, name: str) -> None:
        """Read nothing ahead, because nothing is mapped."""


@dataclass
class _Piece:
    """Where a piece of a tensor, or an object, lies."""

    file: Path
    offset: int
    length: int
    start: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    def read(self) -> Any:
        """Load what lies there as data."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                contents = io.BytesIO(file.read(self.length))
            check_sums(self.file, contents)
            contents.seek(0)
            return torch.load(contents, map_location="cpu", weights_only=True)
        except Exception as error:  # torch lets many through
            raise ValueError(
                f"{self.file} cannot be read at {self.offset}: it is damaged, or holds objects, which would run code. "
                f"Leave this checkpoint out.{hint(self.file)} ({type(error).__name__}: {error})"
            ) from error

    def check(self) -> None:
        """Check that the file is long enough."""
        size = self.file.stat().st_size
        if not 0 <= self.offset <= self.offset + self.length <= size:
            raise ValueError(f"{self.file} is truncated: it has {size} bytes")

    def meets(self, other: "_Piece") -> bool:
        """Whether both hold the same element."""
        spans = zip(self.start, self.shape, other.start, other.shape)
        return all(a < b + n and b < a + m for a, m, b, n in spans)


@dataclass
class _Entry:
    """A tensor, or an object where ``dtype`` is None, of a part of the state that was saved."""

    part: str | None
    name: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    pieces: list[_Piece]

    def check(self) -> None:
        """Check that the pieces make up the whole: they are all inside, none twice, and as many as it has elements."""
        pieces = [piece for piece in self.pieces if math.prod(piece.shape)]
        inside = all(
            len(p.start) == len(p.shape) == len(self.shape)
            and all(a >= 0 and n > 0 and a + n <= size for a, n, size in zip(p.start, p.shape, self.shape))
            for p in pieces
        )
        complete = sum(math.prod(piece.shape) for piece in pieces) == math.prod(self.shape)
        if not inside or not complete or any(a.meets(b) for a, b in combinations(pieces, 2)):
            raise ValueError(f"the pieces of {self.name} do not make up {self.shape}")
        self.pieces = pieces or self.pieces[:1]


class _Unpickler(pickle.Unpickler):
    """Builds the plain classes that describe a checkpoint, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a class up among those that are allowed."""
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module.replace("pathlib._local", "pathlib"), name) not in _CLASSES:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of such a file, and could run code")
        return _CLASSES[module.replace("pathlib._local", "pathlib"), name]


def _entries(folder: Path) -> list[_Entry]:
    """All that lies in a folder, without its values."""
    try:
        with (folder / DISTRIBUTED).open("rb") as file:
            described = _Unpickler(file).load()
        paths = described.planner_data if isinstance(described.planner_data, dict) else {}
        entries = [
            _entry(folder, paths.get(key, (key,)), key, form, described.storage_data)
            for key, form in described.state_dict_metadata.items()
        ]
    except Exception as error:  # a damaged pickle fails in many ways
        raise ValueError(
            f"{folder} cannot be read as a folder of torch.distributed.checkpoint: it is damaged, incomplete, or holds "
            f"objects, which would run code. Leave it out. ({type(error).__name__}: {error})"
        ) from error
    return entries


def _entry(folder: Path, path: tuple[Any, ...], key: str, form: Any, where: dict[Any, Any]) -> _Entry:
    *outer, name = map(str, path)
    part = ".".join(outer) if outer else None
    if not isinstance(form, metadata.TensorStorageMetadata):
        return _Entry(part, name, None, (), [_piece(folder, where[metadata.MetadataIndex(key)], (), ())])
    pieces = [
        _piece(folder, where[metadata.MetadataIndex(key, chunk.offsets)], chunk.offsets, chunk.sizes)
        for chunk in form.chunks
    ]
    entry = _Entry(part, name, form.properties.dtype, tuple(form.size), pieces)
    entry.check()
    return entry


def _piece(folder: Path, place: Any, start: Any, shape: Any) -> _Piece:
    name = place.relative_path
    if PurePath(name).name != name or getattr(place, "transform_descriptors", None):
        raise ValueError(f"{name!r} is no file of this folder, or is compressed")
    piece = _Piece(folder / name, place.offset, place.length, tuple(start), tuple(shape))
    piece.check()
    return piece


def _as_dict(file: Path) -> dict[str, Any]:
    contents = load_as_data(file)
    if not isinstance(contents, dict):
        raise ValueError(
            f"{file} holds a {type(contents).__name__}, but must hold a dictionary. Leave this checkpoint out."
        )
    return contents
