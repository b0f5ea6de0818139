"""Merges one tensor of several files by the share of each."""

import cmath
from collections.abc import Container, Sequence

import torch
from torch import Tensor

from lightning_objectives._files.source import Source, first_names

_PIECE = 2**15
"""How many elements are added up at once: they fit the cache, and torch starts no second thread for so few."""


def copies_sentence(names: Sequence[str]) -> str:
    """Say which buffers a merge has from the newest file alone."""
    return f"The merge has {first_names(names)} of the newest, because these buffers are not finite in every file."


class NotFiniteError(ValueError):
    """A merge of finite and other numbers, which would not be finite."""


def merged_or_newest(
    name: str, sources: Sequence[Source], shares: Sequence[float], *, buffers: Container[str], copied: list[str]
) -> Tensor:
    """Merge one tensor; if it is a buffer that has no finite merge, copy the newest and add its name to ``copied``.

    Raises:
        ValueError: the merge would not be finite, and the tensor is not one of the ``buffers``.
    """
    try:
        return merged_tensor(name, sources, shares)
    except NotFiniteError:
        if name not in buffers:
            raise
        copied.append(name)
        return sources[-1].tensor(name).clone()


def merged_tensor(name: str, sources: Sequence[Source], shares: Sequence[float]) -> Tensor:
    """Merge one tensor, in the newest's type: added up in float32 at least, as differences to the newest.

    The tensor is added up piece by piece, so that each byte of the files is read once and the rest stays in the cache.

    Raises:
        NotFiniteError: the merge would not be finite, except for infinities (of a mask, for example) that all files
            have at the same places.
    """
    newest = sources[-1].tensor(name)
    if not (newest.is_floating_point() or newest.is_complex()):
        return newest
    merged = newest.clone()
    older_tensors = (source.tensor(name) for source in sources[:-1])
    columns: list[Sequence[Tensor]] = [[tensor] for tensor in (merged, *older_tensors, newest)]
    if all(tensor.is_contiguous() for (tensor,) in columns):
        columns = [torch.split(tensor.view(-1), _PIECE) for (tensor,) in columns]
    finite, spare = True, torch.empty_like(columns[0][0], dtype=wide_dtype(newest))
    for part, *older, last in zip(*columns):
        anchor = wide(last)
        total = part if part.dtype == anchor.dtype else anchor.clone()
        _add_up(total, anchor, [wide(tensor) for tensor in older], shares, spare)
        if total is not part:
            part.copy_(total)
        finite = finite and surely_finite(wide(part))
    if not finite:
        check_finite(name, merged, sources)
    return merged


def _add_up(total: Tensor, anchor: Tensor, older: Sequence[Tensor], shares: Sequence[float], spare: Tensor) -> None:
    """Add to ``total``, which holds the anchor, the shares of the older tensors' differences to the anchor."""
    others = [(tensor, share) for tensor, share in zip(older, shares) if not torch.equal(tensor, anchor)]
    spare = spare if spare.shape == anchor.shape else spare[: len(anchor)]
    for tensor, share in others:
        # A difference of equal values is +0, which -0 keeps its sign under only if it is subtracted.
        first, second = (anchor, tensor) if share >= 0 else (tensor, anchor)
        total.sub_(torch.sub(first, second, out=spare), alpha=abs(share))
    if others and not surely_finite(total):
        total.copy_(anchor)
        for tensor, share in others:  # the difference of two equal infinities is NaN, but must be 0
            total.add_(torch.where(tensor == anchor, 0.0, tensor - anchor), alpha=share)


def surely_finite(values: Tensor) -> bool:
    """Tell whether all values are surely finite, by their sum: that is faster, but the sum may overflow."""
    return cmath.isfinite(values.sum().item())


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which a tensor is added up: float32, or its own if that is wider."""
    return tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the type in which it is added up."""
    return tensor.to(wide_dtype(tensor))


def check_finite(name: str, merged: Tensor, sources: Sequence[Source]) -> None:
    """Refuse a merge that is not finite, except for infinities that all files have at the same places.

    Args:
        name: of the tensor.
        merged: the merge.
        sources: the files, and the base if there is one.

    Raises:
        NotFiniteError: with the file and the way out.
    """
    tensors = [wide(source.tensor(name)) for source in sources]
    mask = tensors[-1].isinf()
    for tensor in tensors:
        mask &= tensor == tensors[-1]
    for source, tensor in zip(sources, tensors):
        if (~tensor.isfinite() & ~mask).any():
            raise NotFiniteError(
                f"{name} is NaN or infinite in {source.path}, so the merge would be too: if it is a parameter, that "
                "training had failed by then. Leave this file out, or merge earlier ones. If it is a buffer, which no "
                f"file tells, say buffers=[{name!r}] (--buffer {name}): the newest is copied then."
            )
    if (~wide(merged).isfinite() & ~mask).any():
        raise NotFiniteError(
            f"{name} of {[str(source.path) for source in sources]} has no finite merge: its values are too large for "
            "its type. Leave the files of large values out."
        )
