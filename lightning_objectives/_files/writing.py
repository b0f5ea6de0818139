"""Writes files that appear whole or not at all."""

import json
import os
import struct
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lightning_objectives._files.progress import Progress
from lightning_objectives._files.reading import INDEX, SUFFIXES, open_source
from lightning_objectives._files.source import Source

Entry = tuple[torch.dtype, tuple[int, ...], str]
"""Type and shape of a tensor to write, and the name by which its values are asked for."""

_TYPE_CODES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip
_CODE_OF = {getattr(torch, name): code for code, name in _TYPE_CODES.items() if hasattr(torch, name)}


_NO_METADATA: Mapping[str, str] = {}


def _ignore(what: Any) -> None:
    """Read nothing ahead, and count nothing."""


@contextmanager
def temporary(beside: Path, suffix: str) -> Iterator[Path]:
    """Lend a hidden path in the same folder and delete its file afterwards; after an error, new folders too."""
    new_folders = [folder for folder in beside.parents if not folder.exists()]
    beside.parent.mkdir(parents=True, exist_ok=True)
    path = beside.with_name(f".{beside.name}.{os.getpid()}.{threading.get_ident()}.tmp{suffix}")
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # another process may have written into a new folder by now
            for folder in new_folders:
                folder.rmdir()
        raise
    path.unlink(missing_ok=True)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Lend a temporary path whose file takes the place of ``path`` at the end, unless there is an error.

    Raises:
        OSError: the disk is full, for example; what was at ``path`` before is untouched.
    """
    try:
        with temporary(path, path.suffix) as partial:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())  # else a crash of the machine could leave the name with nothing behind it
            partial.replace(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror or error}), and what was there before is untouched: make "
            "room, or write elsewhere",
        ) from error


class _Counted:
    """A file that tells how many bytes are written to it."""

    def __init__(self, file: BinaryIO, written: Callable[[int], object]) -> None:
        self._file = file
        self._written = written

    def write(self, data: bytes) -> int:
        size = self._file.write(data)
        self._written(size)
        return size

    def flush(self) -> None:
        self._file.flush()


def refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write over a file that is read, or over a file in a folder that is read.

    Raises:
        ValueError: ``out`` is such a file.
    """
    for path in inputs:
        folder = path.parent if path.name.endswith(INDEX) else path
        inside = folder.is_dir() and out.resolve().is_relative_to(folder.resolve())
        if out.is_file() and (inside or (path.exists() and out.samefile(path))):
            raise ValueError(
                f"{out} is an input, or lies in the folder of one, and would be lost: choose another name. If you want "
                "to replace it, say force=True (--force)."
            )


def write_torch(path: Path, contents: Any, written: Callable[[int], object] = _ignore) -> None:
    """Write a file for ``torch.load``. An error leaves part of it: give a path of :func:`replaced`.

    Args:
        path: the file to write.
        contents: what ``torch.save`` takes.
        written: is called with the number of bytes after each of them.

    Raises:
        OSError: the disk is full, for example, which torch reports as a RuntimeError.
    """
    with path.open("wb") as file:
        counted: Any = _Counted(file, written)
        try:
            torch.save(contents, counted)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def write_like(
    template: Source,
    out: Path,
    tensor_of: Callable[[str], Tensor],
    *,
    prefetch: Callable[[str], object] = _ignore,
    storage_key: Callable[[str], Hashable],
    metadata: Mapping[str, str] = _NO_METADATA,
    beside: Mapping[str, Any],
    progress: Progress | None = None,
) -> None:
    """Write a file with the names, types and shapes of another, but other values, one tensor in memory at a time.

    Args:
        template: the other file.
        out: a safetensors file, or one of torch, by its suffix.
        tensor_of: gives the values of a tensor by plain name.
        prefetch: is called with the name of the next tensor before ``tensor_of`` is asked for the current one.
        storage_key: equal for tied names, whose values are asked for once; a safetensors file has them under each.
        metadata: texts for the header of a safetensors file.
        beside: what a file of torch gets beside the weights, if ``template`` is more than a state dict.
        progress: is told how far the file is, and is full when it is on the disk.

    Raises:
        ValueError: the suffix is unknown, or ``template`` cannot become such a file. Nothing is written then.
    """
    check_target(out, template)
    progress = progress or Progress(visible=False)
    plain = out.suffix == ".safetensors"
    progress.begin(sum(_size(*template.form(name)) for name in template.keys), stages=2 if plain else 3)
    progress.stage("merging")
    with replaced(out) as path:
        if plain:
            entries = {template.keys[name]: (*template.form(name), name) for name in template.keys}
            metadata = {"format": "pt", **metadata}  # Hugging Face's from_pretrained refuses metadata without it.
            write_safetensors(path, entries, tensor_of, metadata, prefetch=prefetch, written=progress.add)
        else:
            # torch.save needs all tensors at once. They come from a mapped file, which the system drops from memory
            # as it needs to.
            first: dict[Hashable, str] = {}
            first_names = {name: first.setdefault(storage_key(name), name) for name in template.keys}
            entries = {name: (*template.form(name), name) for name in first.values()}
            with temporary(out, ".safetensors") as mapped:
                write_safetensors(mapped, entries, tensor_of, {}, prefetch=prefetch, written=progress.add)
                progress.end_stage()
                progress.stage("writing")
                values = open_source(mapped)
                tensors = {name: values.tensor(name) for name in entries}
                state = {key: tensors[first_names[name]] for name, key in template.keys.items()}
                state |= template.extra_entries
                contents = state if template.place is None else {**beside, template.place: state}
                write_torch(path, contents, written=progress.add)
        progress.end_stage()
        progress.stage("flushing")
        _check_written(path, template)
    progress.end_stage()


def _size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


def check_target(out: Path, template: Source) -> None:
    """Refuse what :func:`write_like` cannot write.

    Raises:
        ValueError: the suffix is unknown, or ``template`` cannot become such a file.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a directory: give the path of the file to write.")
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out} must end in one of {', '.join(SUFFIXES)}: the suffix says which format to write.")
    if out.suffix == ".safetensors" and template.extra_entries:
        raise ValueError(
            f"{out}: {list(template.extra_entries)} are no tensors, but a safetensors file can hold nothing else. Use "
            ".pt."
        )
    if out.suffix == ".ckpt" and not template.is_lightning:
        raise ValueError(
            f"{out}: {template.path} is no Lightning checkpoint, so none can be made of it. Use .safetensors or .pt."
        )


def _check_written(path: Path, template: Source) -> None:
    written = open_source(path)
    if {name: written.form(name) for name in written.keys} != {name: template.form(name) for name in template.keys}:
        raise RuntimeError(
            f"{path} does not hold what was written to it, so it was not kept: check the disk for errors and for room."
        )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name to a safetensors file, which appears whole or not at all.

    Raises:
        OSError: the disk is full, for example; what was at ``path`` before is untouched.
    """
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    entries = {name: (tensor.dtype, tuple(tensor.shape), name) for name, tensor in cpu.items()}
    with replaced(path) as partial:
        write_safetensors(partial, entries, cpu.__getitem__, {"format": "pt"})


def write_safetensors(
    path: Path,
    entries: Mapping[str, Entry],
    tensor_of: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    *,
    prefetch: Callable[[str], object] = _ignore,
    written: Callable[[int], object] = _ignore,
) -> None:
    """Write a safetensors file one tensor after the other, with only one of them in memory.

    ``safetensors.torch.save_file`` needs all tensors in memory at once.

    Args:
        path: the file to write. An error leaves part of it: give a path of :func:`replaced`.
        entries: type, shape and the name for ``tensor_of``, of each tensor by its name in the file.
        tensor_of: gives the values of a tensor.
        metadata: texts for the header.
        prefetch: is called with the name of the next tensor before ``tensor_of`` is asked for the current one.
        written: is called with the number of bytes after each tensor.

    Raises:
        ValueError: the format does not have a type, or values are not of the type and shape of their entry.
    """
    # The widest types come first, so that every tensor is aligned.
    names = sorted(entries, key=lambda name: (-entries[name][0].itemsize, name))
    header = _header(names, entries, metadata)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, following in zip(names, [*names[1:], None]):
            dtype, shape, key = entries[name]
            if following is not None:
                prefetch(entries[following][2])
            values = tensor_of(key)
            if (values.dtype, tuple(values.shape)) != (dtype, shape):
                raise ValueError(f"{name} is {values.dtype} {tuple(values.shape)}, but must be {dtype} {shape}.")
            file.write(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            written(values.nbytes)


def _header(names: Iterable[str], entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        dtype, shape, _ = entries[name]
        if dtype not in _CODE_OF:
            raise ValueError(f"{name} is of {dtype}, which safetensors files do not have. Use .pt, or another type.")
        start, end = end, end + _size(dtype, shape)
        header[name] = {"dtype": _CODE_OF[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)
