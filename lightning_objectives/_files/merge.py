"""Merges checkpoints on disk into one, tensor by tensor."""

import warnings
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import torch

from lightning_objectives._files.linear_merge import copies_sentence
from lightning_objectives._files.network_merge import Evaluate, Gradient, NetworkMerge
from lightning_objectives._files.plan import merge_plan
from lightning_objectives._files.progress import Progress
from lightning_objectives._files.reading import in_order, open_source
from lightning_objectives._files.source import Source, first_names
from lightning_objectives._files.training_state import entries_beside_weights
from lightning_objectives._files.writing import check_target, refuse_inputs, write_like
from lightning_objectives.kinds import Merge

_LARGE = 2**18
"""How many elements a tensor must have to be read ahead: of smaller ones, the system itself reads enough."""


def merge_checkpoints(
    files: Iterable[str | Path],
    method: Merge,
    out: str | Path,
    *,
    order: Literal["step", "given"] | None = None,
    part: str | None = None,
    buffers: Collection[str] = (),
    base: str | Path | None = None,
    importance: Iterable[str | Path] | None = None,
    evaluate: Evaluate | None = None,
    gradient: Gradient | None = None,
    seed: int = 0,
    force: bool = False,
    dry_run: bool = False,
    verbose: bool = False,
) -> Path:
    r"""Write the merge of checkpoint files, which may be larger than the memory.

    A linear merge is :math:`\sum_j c_j \theta_j`, with the method's coefficients; others have their own formula.

    Args:
        files: checkpoints of one network, each of which may be a ``.safetensors`` file; a ``.ckpt``, ``.pt``, ``.pth``
            or ``.bin`` file of torch; the ``.index.json`` of weights in several files; a folder of Hugging Face's
            ``save_pretrained`` or ``Trainer``; or a folder of ``torch.distributed.checkpoint``, as FSDP2 saves it. If
            a checkpoint holds an average in its ``state_dict``, the average is merged.
        method: the merge.
        out: the file to write, always a single one, also if the inputs are folders; its suffix decides between a
            safetensors file and one of torch. A file of torch is the newest checkpoint with the merged weights and
            without what belongs to one training: states of optimizers, schedulers and scalers, a second set of weights
            (``state_dict_ema``), the epoch of timm's or torchvision's files. For ``.ckpt`` the newest must be a
            checkpoint of Lightning, because ``load_from_checkpoint`` needs one. To open the merge of folders of Hugging
            Face's, write ``model.safetensors`` into a new folder with a copy of ``config.json``.
        order: ``step`` sorts by ``global_step`` in the checkpoint or metadata, ``step`` in the metadata, ``step=N`` in
            the name, or the step of a folder of Hugging Face's (``checkpoint-N``); ``given`` takes the files as evenly
            spaced from the oldest to the newest. By default ``step``, but ``given`` for a method whose result does not
            depend on the steps: its files may come from different trainings.
        part: the entry of each checkpoint that is merged, such as ``state_dict_ema``. The merged weights stand under
            the usual entry. By default the usual one is merged: ``state_dict``, or else ``model``,
            ``model_state_dict``, ``net`` and the like, if there is only one of these.
        buffers: names of tensors that are buffers and not parameters, which no file tells, or patterns of names, such
            as ``*.running_mean``. If the merge of one of them would not be finite (a threshold that is NaN until it is
            set, for example), the newest is copied, and you are told. A method that is not linear leaves buffers alone,
            and their plain mean is taken. The snapshots of ``MergeCheckpoints`` name buffers that are not finite
            themselves.
        base: for a method that asks for it, the weights that all files were trained from, in any of these formats.
        importance: for a method that asks for it, a file for each of ``files``, in the same order, that holds the
            importance of each weight under the weight's name.
        evaluate: for a method that asks for it, a function that takes a state dict and returns its score on held-out
            data; greater is better. Each score needs one merge in memory.
        gradient: for a method that asks for it, a function that takes a state dict and returns the gradient of a loss
            there, a dict of tensors by the same names; names that it leaves out do not count.
        seed: of all that the method draws. A tensor's draws depend on its name and this number alone.
        force: also write over a file that is an input. Any other file at ``out`` is replaced in any case, as
            ``torch.save`` does; the command ``merge`` asks for ``--force`` there too.
        dry_run: check everything that can be told without reading the tensors, and write nothing.
        verbose: print a plan first (file, step and coefficient of each; what is merged, copied and left out; how much
            memory and time it will take), and show a progress bar.

    Returns:
        the path of the written file.

    Raises:
        ValueError: ``out`` is an input; a file is truncated or damaged, of another network, of an unknown step, or
            could run code when read; a tensor is NaN, or infinite in some of the files only, and is not known to be a
            buffer; ``buffers`` names no tensor; or the method asks for something that is missing, or does not use
            something that you give. In every case there is no output file, and one from before is untouched.
        OSError: the disk is full, for example; with the same promise.

    Floating tensors are merged in float32 (float64 tensors in float64); the others (integers, counters) are the
    newest's. A linear merge adds up differences to the newest, so that what is equal in all files stays equal to the
    bit. The result has the newest's types and names. Tied tensors are merged once; a safetensors file holds them under
    each name.

    Memory: one tensor, because files are mapped. Folders of ``torch.distributed.checkpoint`` hold tensors in pieces, so
    that tensor of each folder is in memory. A method that needs numbers of the whole network reads the files more than
    once; its docstring says how often.

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
    if order not in ("step", "given", None):
        raise ValueError(f"order={order!r} must be 'step' or 'given': there is no other way to sort the files.")
    if importance is not None and order == "step":
        raise ValueError("order='step' sorts the files, but not those of importance= beside them: say order='given'.")
    out, paths = Path(out), [Path(file) for file in files]
    beside_files = None if importance is None else [Path(file) for file in importance]
    if not force:
        refuse_inputs(out, [*paths, *([Path(base)] if base is not None else []), *(beside_files or [])])
    as_listed = order == "given" or (order is None and not method.uses_steps())
    sources, steps = in_order(paths, as_listed=as_listed, part=part)

    with ThreadPoolExecutor(1) as reader:

        def prefetch(read: Sequence[Source], name: str) -> None:
            if torch.Size(sources[-1].form(name)[1]).numel() >= _LARGE:
                reader.submit(_touch, name, read)

        merge = NetworkMerge(
            method,
            sources,
            steps,
            base=None if base is None else open_source(base),
            importance=None if beside_files is None else [open_source(file) for file in beside_files],
            buffers={*_named(buffers, sources[-1]), *(name for source in sources for name in source.odd_buffers)},
            evaluate=evaluate,
            gradient=gradient,
            seed=seed,
            prefetch=prefetch,
            visible=verbose,
        )
        check_target(out, merge.newest)
        if verbose:
            print(merge_plan(merge, steps, out, entries_beside_weights(merge.newest)[1]), flush=True)
        if dry_run:
            return out
        merge.prepare()
        newest = merge.newest
        beside, _ = entries_beside_weights(newest)
        if verbose and method.searches() and merge.shares is not None:
            for source, share in zip(sources, merge.shares):
                print(f"  {source.path}  coefficient {share:.4f}")
        metadata = {"step": steps[-1], "steps": steps, "coefficients": merge.shares, "method": method, "base": base}
        with Progress(visible=verbose) as progress:
            write_like(
                newest,
                out,
                merge.tensor,
                prefetch=lambda name: prefetch(merge.files, name),
                storage_key=merge.storage_key,
                metadata={key: str(value) for key, value in metadata.items() if value is not None},
                beside=beside,
                progress=progress,
            )
    if merge.copied:
        (print if verbose else warnings.warn)(copies_sentence(merge.copied))
    return out


def _named(buffers: Collection[str], newest: Source) -> set[str]:
    """The names of the buffers; each is a name, or a pattern of some.

    Raises:
        ValueError: one names no tensor.
    """
    names: set[str] = set()
    unknown = []
    for buffer in buffers:
        found = {buffer} & newest.keys.keys() or {name for name in newest.keys if fnmatchcase(name, buffer)}
        names |= found
        unknown += [] if found else [buffer]
    if unknown:
        has = first_names(newest.keys)
        raise ValueError(f"buffers={sorted(unknown)} are no tensors of {newest.path}: it has {has}.")
    return names


def _touch(name: str, sources: Sequence[Source]) -> None:
    for source in sources:
        source.touch(name)
