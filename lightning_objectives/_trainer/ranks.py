"""Gathers rows from all ranks, and shares what one rank does with the others."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Count the processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: list[Tensor]) -> tuple[list[Tensor], slice]:
    """Concatenate the rows (n_r, ...) of all ranks in the order of the ranks; also return the slice of this rank's own.

    The ranks may have different numbers of rows, as in the last batch of an epoch. All ranks must call this, with
    tensors of the same types. No gradient flows through it.
    """
    rows = [tensor.detach() for tensor in rows]
    count = len(rows[0])
    ranks = world_size()
    if ranks == 1:
        return rows, slice(0, count)
    sizes = list(torch.zeros(ranks, 1, dtype=torch.int64, device=rows[0].device))
    dist.all_gather(sizes, torch.full_like(sizes[0], count))
    counts: list[int] = torch.cat(sizes).tolist()
    gathered = []
    for tensor in rows:
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[:count] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        gathered.append(torch.cat([part[:n] for part, n in zip(parts, counts)]))
    start = sum(counts[: dist.get_rank()])
    return gathered, slice(start, start + count)


def sum_over_ranks(
    sums: Mapping[str, Tensor], rows: int, device: torch.device, error: Exception | None = None
) -> tuple[dict[str, Tensor], int]:
    """Add up the tensors of all ranks by name, and their numbers of rows; all ranks must call this.

    Args:
        sums: the tensors of this rank; empty if it had no rows.
        rows: their number.
        device: where the tensors are.
        error: what went wrong on this rank, so that the others do not wait for it.

    Raises:
        RuntimeError: another rank has failed.
        ValueError: two ranks have tensors of other names, shapes or types.
    """
    if world_size() == 1:
        if error is not None:
            raise error
        return dict(sums), rows
    forms = {name: (tuple(value.shape), value.dtype) for name, value in sums.items()}
    answers: list[Any] = [None] * world_size()
    dist.all_gather_object(answers, (rows, forms, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for rank, (_, _, message) in enumerate(answers):
        if message is not None:
            raise RuntimeError(f"The process of rank {rank} failed: {message}")
    filled = [theirs for _, theirs, _ in answers if theirs]
    if any(theirs != filled[0] for theirs in filled):
        raise ValueError(f"The processes have sums of different names, shapes or types: {filled}.")
    total = {}
    for name, (shape, dtype) in sorted(filled[0].items()) if filled else ():
        own = sums.get(name)
        total[name] = torch.zeros(shape, dtype=dtype, device=device) if own is None else own.clone()
        dist.all_reduce(total[name])
    return total, sum(count for count, _, _ in answers)


def averaged_over_ranks(gradients: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of the ranks' gradients of each parameter, in new tensors; a missing one counts as zero.

    All ranks must call this. One rank alone gets back what it gives.
    """
    if world_size() == 1:
        return dict(gradients)
    # In new tensors: autograd may give one tensor to several parameters, or an expanded one.
    zeros = {name: torch.zeros_like(param) for name, param in params.items()}
    means = {name: zero + gradients[name] if name in gradients else zero for name, zero in zeros.items()}
    for gradient in means.values():
        dist.all_reduce(gradient)
        gradient /= world_size()
    return means


def on_rank_zero(trainer: Any, work: Callable[[], T]) -> T:
    """Let rank 0 do the work, and return the result on every rank. An error is raised on every rank, so none waits."""
    result, error = None, None
    if trainer.is_global_zero:
        try:
            result = work()
        except Exception as caught:
            error = caught
    result, message = trainer.strategy.broadcast((result, None if error is None else str(error)))
    if error is not None:
        raise error
    if message is not None:
        raise RuntimeError(f"The process of rank 0 failed: {message}")
    return cast(T, result)
