"""Merges checkpoints on disk into one, tensor by tensor."""

import cmath
import warnings
from collections.abc import Collection, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_objectives._files.progress import Progress
from lightning_objectives._files.reading import in_order
from lightning_objectives._files.source import Source, first_names
from lightning_objectives._files.training_state import entries_beside_weights
from lightning_objectives._files.writing import refuse_inputs, write_like
from lightning_objectives.kinds import Merge

_PIECE = 2**15
"""How many elements are added up at once: they fit the cache, and torch starts no second thread for so few."""

_LARGE = 2**18
"""How many elements a tensor must have to be read ahead: of smaller ones, the system itself reads enough."""


def merge_checkpoints(
    files: Iterable[str | Path],
    method: Merge,
    out: str | Path,
    *,
    order: Literal["step", "given"] = "step",
    part: str | None = None,
    buffers: Collection[str] = (),
    force: bool = False,
    verbose: bool = False,
) -> Path:
    r"""Write the merge :math:`\sum_j c_j \theta_j` of checkpoint files, which may be larger than the memory.

    Args:
        files: checkpoints of one network, each of which may be a ``.safetensors`` file; a ``.ckpt``, ``.pt``, ``.pth``
            or ``.bin`` file of torch; the ``.index.json`` of weights in several files; a folder of Hugging Face's
            ``save_pretrained`` or ``Trainer``; or a folder of ``torch.distributed.checkpoint``, as FSDP2 saves it. If
            a checkpoint holds an average in its ``state_dict``, the average is merged.
        method: gives the coefficients from the steps.
        out: the file to write, always a single one, also if the inputs are folders; its suffix decides between a
            safetensors file and one of torch. A file of torch is the newest checkpoint with the merged weights and
            without what belongs to one training: states of optimizers, schedulers and scalers, a second set of weights
            (``state_dict_ema``), the epoch of timm's or torchvision's files. For ``.ckpt`` the newest must be a
            checkpoint of Lightning, because ``load_from_checkpoint`` needs one. To open the merge of folders of Hugging
            Face's, write ``model.safetensors`` into a new folder with a copy of ``config.json``.
        order: ``step`` sorts by ``global_step`` in the checkpoint or metadata, ``step`` in the metadata, ``step=N`` in
            the name, or the step of a folder of Hugging Face's (``checkpoint-N``); ``given`` takes the files as evenly
            spaced from the oldest to the newest.
        part: the entry of each checkpoint that is merged, such as ``state_dict_ema``. The merged weights stand under
            the usual entry. By default the usual one is merged: ``state_dict``, or else ``model``,
            ``model_state_dict``, ``net`` and the like, if there is only one of these.
        buffers: names of tensors that are buffers and not parameters, which no file tells. If the merge of one of them
            would not be finite (a threshold that is NaN until it is set, for example), the newest is copied, and you
            are told. The snapshots of ``MergeCheckpoints`` name such buffers themselves.
        force: also write over a file that is an input. Any other file at ``out`` is replaced in any case, as
            ``torch.save`` does; the command ``merge`` asks for ``--force`` there too.
        verbose: print file, step and coefficient of each first, and show a progress bar.

    Returns:
        the path of the written file.

    Raises:
        ValueError: ``out`` is an input; a file is truncated or damaged, of another network, of an unknown step, or
            could run code when read; a tensor is NaN, or infinite in some of the files only, and is not known to be a
            buffer; or ``buffers`` names no tensor. In every case there is no output file, and one from before is
            untouched.
        OSError: the disk is full, for example; with the same promise.

    Floating tensors are added up in float32 (float64 tensors in float64), as differences to the newest, so that what is
    equal in all files stays equal to the bit; the others (integers, counters) are the newest's. The result has the
    newest's types and names. Tied tensors are merged once; a safetensors file holds them under each name.

    Memory: one tensor, because files are mapped. Folders of ``torch.distributed.checkpoint`` hold tensors in pieces, so
    that tensor of each folder is in memory.

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
        raise ValueError(f"order={order!r} must be 'step' or 'given': there is no other way to sort the files.")
    out, paths = Path(out), [Path(file) for file in files]
    if not force:
        refuse_inputs(out, paths)
    sources, steps = in_order(paths, as_listed=order == "given", part=part)
    shares: list[float] = method.coefficients(steps).tolist()
    newest = sources[-1]
    unknown = sorted(set(buffers) - newest.keys.keys())
    if unknown:
        raise ValueError(f"buffers={unknown} are no tensors of {newest.path}: it has {first_names(newest.keys)}.")
    known_buffers = {*buffers, *(name for source in sources for name in source.odd_buffers)}
    copied: list[str] = []
    if verbose:
        for source, step, share in zip(sources, steps, shares):
            print(f"{source.path}  step {step}  coefficient {share:.4f}")
    beside, left_out = entries_beside_weights(newest)
    if verbose and left_out:
        print(f"left out, because it belongs to one training: {', '.join(left_out)}")
    metadata = {"step": steps[-1], "steps": steps, "coefficients": shares, "method": method}

    def storage_key(name: str) -> tuple[object, ...]:
        return tuple(source.storage_key(name) for source in sources)  # equal for names that are tied in every file

    with Progress(visible=verbose) as progress, ThreadPoolExecutor(1) as reader:

        def tensor_of(name: str) -> Tensor:
            return merged_or_newest(name, sources, shares, buffers=known_buffers, copied=copied)

        def prefetch(name: str) -> None:
            if torch.Size(newest.form(name)[1]).numel() >= _LARGE:
                reader.submit(_touch, name, sources)

        write_like(
            newest,
            out,
            tensor_of,
            prefetch=prefetch,
            storage_key=storage_key,
            metadata={key: str(value) for key, value in metadata.items()},
            beside=beside,
            progress=progress,
        )
    if copied:
        (print if verbose else warnings.warn)(copies_sentence(copied))
    return out


def copies_sentence(names: Sequence[str]) -> str:
    """Say which buffers a merge has from the newest file alone."""
    return f"The merge has {first_names(names)} of the newest, because these buffers are not finite in every file."


def _touch(name: str, sources: Sequence[Source]) -> None:
    for source in sources:
        source.touch(name)


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
    finite, spare = True, torch.empty_like(columns[0][0], dtype=_wide_dtype(newest))
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
    """Add to ``total``, which holds the anchor, the shares of the older tensors' differences to the anchor."""
    others = [(tensor, share) for tensor, share in zip(older, shares) if not torch.equal(tensor, anchor)]
    spare = spare if spare.shape == anchor.shape else spare[: len(anchor)]
    for tensor, share in others:
        total.add_(torch.sub(tensor, anchor, out=spare), alpha=share)
    if others and not _finite(total):
        total.copy_(anchor)
        for tensor, share in others:  # the difference of two equal infinities is NaN, but must be 0
            total.add_(torch.where(tensor == anchor, 0.0, tensor - anchor), alpha=share)


def _finite(values: Tensor) -> bool:
    """Tell whether all values are surely finite, by their sum: that is faster, but the sum may overflow."""
    return cmath.isfinite(values.sum().item())


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_dtype(tensor))


def _check_finite(name: str, merged: Tensor, sources: Sequence[Source]) -> None:
    tensors = [_wide(source.tensor(name)) for source in sources]
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
    if (~_wide(merged).isfinite() & ~mask).any():
        raise NotFiniteError(
            f"{name} of {[str(source.path) for source in sources]} has no finite merge: its values are too large for "
            "its type. Leave the files of large values out."
        )
