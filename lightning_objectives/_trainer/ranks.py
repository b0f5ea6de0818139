"""Rows of all ranks, and back; work of one rank for all."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: list[Tensor]) -> tuple[list[Tensor], slice]:
    """The rows (n_r, ...) of all ranks behind one another, by rank, and where this rank's own are.

    Ranks may hold different numbers of rows (the last batch of an epoch). All ranks must call it, with tensors of the
    same types; the gradient does not cross it.
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
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        gathered.append(torch.cat([part[:n] for part, n in zip(everyone, counts)]))
    start = sum(counts[: dist.get_rank()])
    return gathered, slice(start, start + count)


def on_rank_zero(trainer: Any, work: Callable[[], T]) -> T:
    """The result of work that rank 0 does, on every rank; its error is one of every rank too, so that none waits."""
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
        raise RuntimeError(f"The first process failed: {message}")
    return cast(T, result)
