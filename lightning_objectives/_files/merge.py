"""Checkpoints on disk into one, tensor by tensor."""

import cmath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from mmap import PAGESIZE
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_objectives._files.reading import Source, in_order
from lightning_objectives._files.writing import OF_AVERAGES, OF_TRAINING, write_like
from lightning_objectives.kinds import Merge

_PIECE = 2**15
"""Elements that are added up at once: they fit the cache, and torch takes no second thread for so few."""

_LARGE = 2**18
"""Elements of a tensor from which it is read ahead: of smaller ones the system itself reads enough."""


def merge_checkpoints(
    files: Iterable[str | Path],
    method: Merge,
    out: str | Path,
    *,
    order: Literal["step", "given"] = "step",
    verbose: bool = False,
) -> Path:
    r"""Write the merge :math:`\sum_j c_j \theta_j` of checkpoint files, which may be larger than the memory.

    Args:
        files: ``.safetensors``, or ``.ckpt``, ``.pt``, ``.pth``, ``.bin`` of torch, of one network. Of checkpoints that
            hold an average in their ``state_dict`` the averages are merged.
        method: gives the coefficients from the steps.
        out: where to; by its suffix a safetensors file, or one of torch, which is the newest file's checkpoint with
            the merged ``state_dict`` and without what belongs to its training (``.ckpt`` and ``load_from_checkpoint``
            ask for a Lightning checkpoint).
        order: ``step`` sorts by ``global_step`` in the checkpoint or metadata, ``step`` in the metadata or ``step=N``
            in the name; ``given`` takes the files as evenly spaced from the oldest to the newest.
        verbose: print file, step and coefficient of each first, and show a bar.

    Returns:
        the path of the file.

    Raises:
        ValueError: a file that is truncated or damaged, of another network, of an unknown step, or that could run code
            when read; weights that are NaN, or infinite in some of the files only. In every case there
            is no output file, and one that was there before is untouched.
        OSError: the disk is full, say; with the same promise.

    Floating tensors are added up in float32 (float64 where they are), as differences to the newest, so that what is
    equal in all files stays so to the bit; the others (integers, counters) are the newest's. The result has the
    newest's types and names. Tied tensors are merged once; a safetensors file holds them under each name.

    Example:
        >>> import tempfile
        >>> from lightning_objectives.merging import WSM
        >>> scratch = tempfile.TemporaryDirectory()
        >>> folder = Path(scratch.name)
        >>> for step, value in ((10, 1.0), (20, 4.0)):
        ...     torch.save({"weight": torch.tensor([value])}, folder / f"step={step}.pt")
        >>> merged = merge_checkpoints(folder.glob("*.pt"), WSM(shape="linear"), folder / "merged.pt")
        >>> torch.load(merged, weights_only=True)
        {'weight': tensor([2.5000])}
        >>> scratch.cleanup()
    """
    if order not in ("step", "given"):
        raise ValueError(f"order={order!r} must be 'step' or 'given'.")
    out = Path(out)
    sources, steps = in_order(files, given=order == "given")
    shares: list[float] = method.coefficients(steps).tolist()
    newest = sources[-1]
    if verbose:
        for source, step, share in zip(sources, steps, shares):
            print(f"{source.path}  step {step}  coefficient {share:.4f}")
    with tqdm(total=len(newest.keys), disable=not verbose, unit="tensor") as bar:

        def tensor(name: str) -> Tensor:
            bar.update()
            return merged_tensor(name, sources, shares)

        metadata = {"step": steps[-1], "steps": steps, "coefficients": shares, "method": method}
        texts = {key: str(value) for key, value in metadata.items()}

        def place(name: str) -> tuple[object, ...]:
            return tuple(source.place(name) for source in sources)  # what is tied in each of them

        with ThreadPoolExecutor(1) as reader:

            def soon(name: str) -> None:
                if torch.Size(newest.form(name)[1]).numel() >= _LARGE:
                    reader.submit(_touch, name, sources)

            write_like(newest, out, tensor, soon=soon, place=place, metadata=texts, leave=(*OF_TRAINING, *OF_AVERAGES))
    return out


def _touch(name: str, sources: Sequence[Source]) -> None:
    """Read a byte of each page of a tensor, so that the disk is at work while the one before is added up."""
    for source in sources:
        tensor = source.tensor(name)
        if tensor.is_contiguous():
            tensor.reshape(-1).view(torch.uint8)[::PAGESIZE].sum()


def merged_tensor(name: str, sources: Sequence[Source], shares: Sequence[float]) -> Tensor:
    """The merge of one tensor, in the newest's type: added up in float32 at least, as differences to the newest.

    It is added up piece by piece, so that each byte of the files is read once and the rest stays in the cache.

    Raises:
        ValueError: it would not be finite, but for infinities (of a mask, say) that all have at the same places.
    """
    newest = sources[-1].tensor(name)
    if not (newest.is_floating_point() or newest.is_complex()):
        return newest
    merged = newest.clone()
    columns: list[Sequence[Tensor]] = [[tensor] for tensor in (merged, *(source.tensor(name) for source in sources))]
    if all(tensor.is_contiguous() for (tensor,) in columns):
        columns = [torch.split(tensor.view(-1), _PIECE) for (tensor,) in columns]
    finite, spare = True, torch.empty_like(columns[0][0], dtype=_width(newest))
    for part, *older, last in zip(*columns):
        anchor = _wide(last)
        total = part if part.dtype == anchor.dtype else anchor.clone()
        _add_up(total, anchor, [_wide(tensor) for tensor in older], shares, spare)
        if total is not part:
            part.copy_(total)
        finite = finite and _finite(_wide(part))
    if not finite:
        _check_finite(name, merged, sources)
    return merged


def _add_up(total: Tensor, anchor: Tensor, older: Sequence[Tensor], shares: Sequence[float], spare: Tensor) -> None:
    """Add to the anchor in ``total`` the shares of the differences to it."""
    others = [(tensor, share) for tensor, share in zip(older, shares) if not torch.equal(tensor, anchor)]
    spare = spare if spare.shape == anchor.shape else spare[: len(anchor)]
    for tensor, share in others:
        total.add_(torch.sub(tensor, anchor, out=spare), alpha=share)
    if others and not _finite(total):
        total.copy_(anchor)
        for tensor, share in others:  # infinities that are equal have no difference
            total.add_(torch.where(tensor == anchor, 0.0, tensor - anchor), alpha=share)


def _finite(values: Tensor) -> bool:
    """Whether all are surely finite: their sum is, which is cheaper to look at, and may overflow."""
    return cmath.isfinite(values.sum().item())


def _width(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_width(tensor))


def _check_finite(name: str, merged: Tensor, sources: Sequence[Source]) -> None:
    values = [_wide(source.tensor(name)) for source in sources]
    mask = values[-1].isinf()
    for mine in values:
        mask &= mine == values[-1]
    for source, mine in zip(sources, values):
        if (~mine.isfinite() & ~mask).any():
            raise ValueError(
                f"{name} is NaN or infinite in {source.path}, so that the merge would be too: that training had come "
                "to nothing there. Leave this file out, or merge earlier ones."
            )
    if (~_wide(merged).isfinite() & ~mask).any():
        raise ValueError(
            f"{name} of {[str(source.path) for source in sources]} has no finite merge: its values are too large for "
            "its type. Leave the files of large values out."
        )
