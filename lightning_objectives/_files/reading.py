"""Opens checkpoints of every format, and brings those of one network into order."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from lightning_objectives._files.folders import DISTRIBUTED, weights_in
from lightning_objectives._files.safetensors_file import SafetensorsFile
from lightning_objectives._files.sharded import Shards
from lightning_objectives._files.source import Source, first_names, number_kind
from lightning_objectives._files.torch_file import TorchFile

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
T = TypeVar("T")
INDEX = ".index.json"
"""How the name of an index of several files ends."""


def open_source(path: str | Path, part: str | None = None) -> Source:
    """Open a checkpoint of any format to read its tensors one by one.

    Args:
        path: a ``.safetensors`` file; one that ``torch.save`` wrote, such as a Lightning checkpoint or a state dict;
            the ``.index.json`` of several such files; a folder of Hugging Face's ``save_pretrained``; or a folder of
            ``torch.distributed.checkpoint``, such as FSDP2's checkpoints.
        part: the entry of the checkpoint to read, in place of that under which its weights usually are.

    Raises:
        ValueError: the file cannot be read as weights; the message says why.
    """
    path = Path(path)
    if path.is_dir() and (path / DISTRIBUTED).is_file():
        from lightning_objectives._files.distributed import DistributedFolder  # It imports torch.distributed.

        return DistributedFolder(path, part)
    if path.is_dir():
        path = weights_in(path)
    return Shards(path, part, _open_file) if path.name.endswith(INDEX) else _open_file(path, part)


def _open_file(path: Path, part: str | None = None) -> Source:
    if not path.is_file():
        reason = "is a directory: give a file in it" if path.is_dir() else "does not exist: give a file of weights"
        raise ValueError(f"{path} {reason}.")
    if path.suffix == ".safetensors":
        return SafetensorsFile(path, part)
    if path.suffix in TORCH_SUFFIXES:
        return TorchFile(path, part)
    raise ValueError(
        f"{path} has the suffix {path.suffix!r}, which names no format of weights: it must have one "
        f"of {', '.join(SUFFIXES)}."
    )


def in_order(
    paths: Iterable[str | Path], *, as_listed: bool = False, part: str | None = None
) -> tuple[list[Source], list[int]]:
    """Open checkpoints of one network, oldest first, and return them with their steps.

    Args:
        paths: the files.
        part: the entry of each checkpoint to read, if not the usual one.
        as_listed: keep the order of ``paths`` and number the files from 0, whatever their steps are.

    Raises:
        ValueError: there is no file, two have the same step, one has no known step, or their tensors do not match.
    """
    with ThreadPoolExecutor() as pool:  # Python's lock is free while checksums are computed
        opened = [pool.submit(open_source, path, part) for path in paths]
    sources = all_of(file.result for file in opened)
    if not sources:
        raise ValueError("There are no files to merge: give at least one.")
    if not as_listed:
        sources = _by_step(sources)
    all_of(partial(check_match, source, sources[-1]) for source in sources[:-1])
    return sources, list(range(len(sources))) if as_listed else [source.step or 0 for source in sources]


def all_of(checks: Iterable[Callable[[], T]]) -> list[T]:
    """What each function returns; whatever is wrong is told at once, and not the first alone.

    Raises:
        ValueError: with each refusal on a line of its own.

    >>> all_of([lambda: 1, lambda: int("x"), lambda: int("y")])
    Traceback (most recent call last):
        ...
    ValueError: invalid literal for int() with base 10: 'x'
    invalid literal for int() with base 10: 'y'
    """
    found, refused = [], []
    for check in checks:
        try:
            found.append(check())
        except ValueError as error:
            refused.append(error)
    if refused:
        raise ValueError("\n".join(map(str, refused))) from refused[0]
    return found


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


def check_match(source: Source, newest: Source) -> None:
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
