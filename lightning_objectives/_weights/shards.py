"""Says which memory a tensor is in, and converts between a whole tensor and this rank's shard of a DTensor."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """The detached storage of a tensor on this rank: the tensor itself, or the shard of a DTensor."""
    detached: Any = tensor.detach()
    shard: Tensor = detached.to_local() if hasattr(detached, "to_local") else detached
    return shard


def address(tensor: Any) -> int:
    """Where the storage of a tensor, or of this rank's shard of it, begins."""
    pointer: int = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).data_ptr()
    return pointer


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies in memory, and how."""
    return address(tensor), tensor.shape, tensor.stride()


def overlapping(tensors: Sequence[Tensor]) -> set[int]:
    """Find the tensors that share memory with another one, by position.

    >>> base = torch.zeros(4)
    >>> sorted(overlapping([base[:2], torch.ones(1), base[1:3], base[3:]]))
    [0, 2]
    """
    ends = {
        at: t.data_ptr() + t.element_size() * (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride())))
        for at, t in enumerate(tensors)
        if t.numel()
    }
    shared: set[int] = set()
    last = -1
    for at in sorted(ends, key=lambda at: tensors[at].data_ptr()):
        if last >= 0 and tensors[at].data_ptr() < ends[last] and tensors[at].device == tensors[last].device:
            shared |= {last, at}
        if last < 0 or ends[at] > ends[last]:
            last = at
    return shared


def like(shard: Tensor, of: Any) -> Tensor:
    """The shard as a DTensor laid out as ``of``; the shard itself if ``of`` is no DTensor."""
    if not hasattr(of, "to_local"):
        return shard
    from torch.distributed.tensor import DTensor

    # DTensor cannot work out the shape and the stride from an uneven shard, so both are passed.
    return DTensor.from_local(shard, of.device_mesh, of.placements, run_check=False, shape=of.shape, stride=of.stride())


def whole(shard: Tensor, of: Any) -> Tensor:
    """Join the shards of all ranks into the whole tensor, on the CPU; a collective call if ``of`` is a DTensor."""
    joined: Any = like(shard, of)
    return joined.full_tensor().cpu() if hasattr(joined, "full_tensor") else shard


def shard_of(full: Tensor, of: Any) -> Tensor:
    """Cut this rank's part out of a whole tensor, laid out as ``of``; without communication."""
    if not hasattr(of, "to_local"):
        return full
    from torch.distributed.tensor import DTensor, Replicate

    mesh = of.device_mesh
    replicated: Any = DTensor.from_local(full.to(mesh.device_type), mesh, [Replicate()] * mesh.ndim, run_check=False)
    laid_out: Any = replicated.redistribute(mesh, of.placements)
    return local(laid_out)


def reshard(network: torch.nn.Module) -> None:
    """Make FSDP2 drop the gathered weights, which would hide new values in the shards."""
    modules: Any = network.modules()
    for module in modules:
        if hasattr(module, "reshard"):
            module.reshard()
