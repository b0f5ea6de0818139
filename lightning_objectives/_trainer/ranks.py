"""Gathers rows from all ranks, and shares what one rank does with the others."""

from collections.abc import Callable
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
