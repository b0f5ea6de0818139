"""Files that appear whole or not at all."""

import json
import os
import struct
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._files.reading import TORCH_SUFFIXES, Source

Entry = tuple[torch.dtype, tuple[int, ...], str]

_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip
_TYPES = {getattr(torch, name): code for code, name in _NAMES.items() if hasattr(torch, name)}


OF_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "MixedPrecision", "amp_scaling_state")
"""What a Lightning checkpoint holds to go on with its training, beside the weights."""
OF_AVERAGES = ("current_model_state", "averaging_state")
"""What Lightning's own ``WeightAveraging`` adds to it."""


@contextmanager
def temporary(beside: Path, suffix: str) -> Iterator[Path]:
    """A hidden path in the same folder, of which no file is left; after an error no folder either, made for it."""
    made = [folder for folder in beside.parents if not folder.exists()]
    beside.parent.mkdir(parents=True, exist_ok=True)
    path = beside.with_name(f".{beside.name}.{os.getpid()}.{threading.get_ident()}.tmp{suffix}")
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's file may be in it by now
            for folder in made:
                folder.rmdir()
        raise
    path.unlink(missing_ok=True)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path, whose file takes the place of ``path`` at the end, unless an error comes.

    Raises:
        OSError: the disk is full, say; what was at ``path`` before is still there.
    """
    try:
        with temporary(path, path.suffix) as written:
            yield written
            with written.open("rb") as file:
                os.fsync(file.fileno())  # or a crash of the machine could leave the name with nothing behind it
            written.replace(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror or error}), and what was there before is untouched: make "
            "room, or write elsewhere",
        ) from error


def write_torch(path: Path, contents: Any) -> None:
    """Write what ``torch.load`` reads; not atomic by itself, see :func:`replaced`.

    Raises:
        OSError: the disk is full, of which torch makes a RuntimeError.
    """
    with path.open("wb") as file:
        try:
            torch.save(contents, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def write_like(
    model: Source,
    out: Path,
    tensor: Callable[[str], Tensor],
    *,
    soon: Callable[[str], object] = lambda name: None,
    place: Callable[[str], Hashable],
    metadata: Mapping[str, str],
    leave: Iterable[str],
) -> None:
    """Write a file with the names and types of another; the tensors are asked for one by one, and none is kept.

    Args:
        model: the other file.
        out: a safetensors file, or one of torch, by its suffix; the latter has also what else the other file holds.
        tensor: gives a tensor by plain name.
        soon: is told the name of the next tensor, before one is asked for.
        place: equal for names that are tied, whose tensor is asked for once; a safetensors file has it under each.
        metadata: texts for the header of a safetensors file.
        leave: what of the other checkpoint is left out.

    Raises:
        ValueError: the suffix is none of these, or the file cannot be what it asks for. Nothing is written then.
    """
    if out.suffix == ".safetensors":
        if model.others:
            raise ValueError(
                f"{out}: {list(model.others)} are no tensors, which alone safetensors files hold. Use .pt."
            )
        with replaced(out) as path:
            entries = {model.keys[n]: (*model.form(n), n) for n in model.keys}
            write_safetensors(path, entries, tensor, metadata, soon=soon)
            _check(path, model)
        return
    if out.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"{out} must end in one of {', '.join(('.safetensors', *TORCH_SUFFIXES))}.")
    if out.suffix == ".ckpt" and "pytorch-lightning_version" not in model.frame:
        raise ValueError(
            f"{out}: {model.path} is no Lightning checkpoint, so that none can be made of it. Use .safetensors or .pt."
        )
    first: dict[Hashable, str] = {}
    same = {name: first.setdefault(place(name), name) for name in model.keys}
    # torch.save wants all tensors at once: it gets them from a mapped file, which is no more in memory than it must be.
    with replaced(out) as path, temporary(out, ".safetensors") as between:
        write_safetensors(between, {n: (*model.form(n), n) for n in first.values()}, tensor, {}, soon=soon)
        parts = Source(between)
        read = {name: parts.tensor(name) for name in first.values()}
        state = {model.keys[name]: read[same[name]] for name in model.keys} | model.others
        frame = {key: value for key, value in model.frame.items() if key not in leave}
        lightning = "state_dict" in model.frame
        write_torch(path, {**frame, "state_dict": state} if lightning else state)
        _check(path, model)


def _check(path: Path, model: Source) -> None:
    written = Source(path)
    if {n: written.form(n) for n in written.keys} != {n: model.form(n) for n in model.keys}:
        raise RuntimeError(f"{path} does not hold what was written; is the disk full or failing?")


def write_safetensors(
    path: Path,
    entries: Mapping[str, Entry],
    tensor: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    *,
    soon: Callable[[str], object] = lambda name: None,
) -> None:
    """Write a safetensors file one tensor after the other, none of them kept.

    ``safetensors.torch.save_file`` takes all tensors at once, in memory.

    Args:
        path: where to; not atomic by itself, see :func:`replaced`.
        entries: type, shape and what ``tensor`` calls it, of each tensor by its name in the file.
        tensor: gives a tensor.
        metadata: texts for the header.
        soon: is told what the next tensor is called, before one is asked for.

    Raises:
        ValueError: a type that the format does not have.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # The widest types first, so that every tensor is aligned.
    names = sorted(entries, key=lambda name: (-entries[name][0].itemsize, name))
    end = 0
    for name in names:
        dtype, shape, _ = entries[name]
        if dtype not in _TYPES:
            raise ValueError(f"{name} is of {dtype}, which safetensors files do not have.")
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, following in zip(names, [*names[1:], None]):
            dtype, shape, called = entries[name]
            if following is not None:
                soon(entries[following][2])
            values = tensor(called)
            if (values.dtype, tuple(values.shape)) != (dtype, shape):
                raise ValueError(f"{name} is {values.dtype} {tuple(values.shape)}, but must be {dtype} {shape}.")
            file.write(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
