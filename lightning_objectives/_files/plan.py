"""Says what a merge will do, before it does it."""

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import torch

from lightning_objectives._files.network_merge import NetworkMerge
from lightning_objectives._files.source import Source, first_names
from lightning_objectives.kinds import Merge

_SAMPLE = 2**22
"""About how many elements of all files together are merged to measure the rate."""
_GUESSED_RATE = 200 * 2**20
"""Bytes of input in a second, where nothing could be measured."""
_COPIES = 12
"""How many copies of a tensor, in float32, a merge by whole tensors may hold: Model Stock holds 11."""
_PIECES = 32 * 2**20
"""About what a merge by pieces holds at once, in bytes."""


def merge_plan(merge: NetworkMerge, steps: Sequence[int], out: Path, left_out: Sequence[str]) -> str:
    """Describe a merge in lines: its files, what becomes of their tensors, and what it will cost.

    To measure how fast it will be, it merges one small tensor of the network, and nothing else.
    """
    return "\n".join(
        [f"{merge.method!r} merges into {out}:", *_files(merge, steps), *_contents(merge, left_out), *_cost(merge)]
    )


def _files(merge: NetworkMerge, steps: Sequence[int]) -> Iterator[str]:
    for place, (source, step) in enumerate(zip(merge.sources, steps)):
        share = f"  coefficient {merge.shares[place]:.4f}" if merge.shares else ""
        beside = f"  importance {merge.importance[place].path}" if merge.importance is not None else ""
        yield f"  {source.path}  step {step}{share}{beside}"
    if merge.base is not None:
        yield f"  {merge.base.path}  the base"
    if merge.method.searches():
        yield "The coefficients are searched, and printed when they are found."


def _contents(merge: NetworkMerge, left_out: Sequence[str]) -> Iterator[str]:
    newest = merge.newest
    floats = [n for n in newest.keys if newest.form(n)[0].is_floating_point or newest.form(n)[0].is_complex]
    means = [] if merge.method.linear else [name for name in floats if merge.is_linear(name)]
    merged = [name for name in floats if name not in means]
    yield f"merged: {_counted(merge, merged)}" if merged else "merged: nothing"
    if means:
        yield f"plain mean in place of the merge: {_counted(merge, means)}, {first_names(means)}"
    copied = [name for name in newest.keys if name not in floats]
    copied += [str(name) for name in newest.extra_entries]
    if copied:
        yield f"copied from the newest file and not merged (whole numbers, or no tensors): {first_names(copied)}"
    if left_out:
        yield f"left out, because it belongs to one training: {', '.join(left_out)}"


def _counted(merge: NetworkMerge, names: Sequence[str]) -> str:
    tensors = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {tensors}, {_in_units(sum(_size(merge.newest, name) for name in names))}"


def _cost(merge: NetworkMerge) -> Iterator[str]:
    names = list(merge.newest.keys)
    largest = max(names, key=lambda name: _size(merge.newest, name))
    held = _size(merge.newest, largest) * (1 + sum(not source.mapped for source in merge.files))
    by_whole = not merge.method.linear and not merge.method.by_element and not merge.method.by_row
    if by_whole:
        held += _COPIES * 4 * max(_elements(source, name) for source in merge.files for name in source.keys)
    yield (
        f"memory: about {_in_units(held + (0 if by_whole else _PIECES))}, estimated from the largest tensor, {largest}"
        f"{_besides(merge.method)}"
    )
    size = sum(_size(source, name) for source in merge.files for name in source.keys)
    rate, how = _rate(merge)
    if merge.method.searches():
        yield (
            f"time: about {_seconds(size / rate)} for each merge that the search tries, beside your function's own, "
            f"and for the merge, {how}"
        )
        return
    # What is tried is measured and merged as a network of one tensor, so that the rate is of both passes together.
    measures = type(merge.method).statistics is not Merge.statistics
    often = "twice, the first time to measure the whole network," if measures else "once"
    yield (
        f"time: about {_seconds(size / rate)} to read {_in_units(size)} {often} and merge it, {how}; "
        f"then {_in_units(sum(_size(merge.newest, name) for name in names))} are written to the disk"
    )


def _besides(method: Merge) -> str:
    if method.searches():
        return ", and one whole merge while the search tries it"
    measures = type(method).statistics is not Merge.statistics
    return ", and what the method keeps of its first pass" if measures else ""


def _rate(merge: NetworkMerge) -> tuple[float, str]:
    """Bytes of input in a second, and how that is known."""
    newest = merge.newest
    floats = [name for name in newest.keys if newest.form(name)[0].is_floating_point and _elements(newest, name)]
    sizes = {name: _elements(newest, name) for name in floats if merge.method.linear or not merge.is_linear(name)}
    # Not too small, because a rate would then be that of the first call, and not too large, because this is a plan.
    wanted = _SAMPLE / len(merge.files)
    name = min(sizes, key=lambda name: abs(math.log(sizes[name] / wanted)), default="")
    start = perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # They are of a network of one tensor, which this is not.
            size = merge.try_out(name, _SAMPLE // len(merge.files)) if name else 0
    except ValueError:  # The merge itself will say so, if it is also wrong for the whole network.
        size = 0
    if not size:
        return (
            _GUESSED_RATE,
            f"at {_in_units(_GUESSED_RATE)} a second, which is a guess, because nothing could be tried",
        )
    rate = size / max(perf_counter() - start, 1e-9)
    return rate, f"at {_in_units(int(rate))} a second, measured now with {_in_units(size)} of {name}"


def _elements(source: Source, name: str) -> int:
    return torch.Size(source.form(name)[1]).numel()


def _size(source: Source, name: str) -> int:
    return source.form(name)[0].itemsize * _elements(source, name)


def _in_units(size: float) -> str:
    """A number of bytes in words.

    >>> _in_units(5), _in_units(1536), _in_units(5 * 2**40)
    ('5 B', '1.5 KiB', '5120 GiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _seconds(seconds: float) -> str:
    """A time in words.

    >>> _seconds(0.0123), _seconds(75), _seconds(7200)
    ('0.012 s', '75 s', '120 min')
    """
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.0f} min"
