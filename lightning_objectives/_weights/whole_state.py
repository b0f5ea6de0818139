"""Copies all that a module keeps in a checkpoint, and lets other values stand in its place for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_objectives._files.names import plain_name
from lightning_objectives._weights.shards import local, reshard, shard_of, whole


def lent_children(module: nn.Module) -> dict[str, nn.Module]:
    """The children, by name, that a callback has added for the time of a fit: they are in no checkpoint.

    Such a child keeps its tensors out of the state dict. Children without tensors are among them, which does no harm.
    """
    return {name: child for name, child in module.named_children() if not child.state_dict()}


def persistent_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and the persistent buffers, tied ones under each of their names, without ``_orig_mod.``."""
    lent = tuple(f"{name}." for name in lent_children(module))
    passing = {
        f"{path}.{name}".lstrip(".") for path, m in module.named_modules() for name in m._non_persistent_buffers_set
    }
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {plain_name(name): tensor for name, tensor in named if name not in passing and not name.startswith(lent)}


def buffer_names(module: nn.Module) -> set[str]:
    """The names of the persistent buffers, as :func:`persistent_tensors` has them."""
    parameters = {plain_name(name) for name, _ in module.named_parameters(remove_duplicate=False)}
    return persistent_tensors(module).keys() - parameters


@torch.no_grad()
def cpu_copies(module: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Copy the persistent tensors to the CPU's memory, tied ones once; all ranks take part.

    Args:
        module: the module that holds the tensors.
        keep: whether this rank gets the copies; the others only send their shards.
    """
    tensors = persistent_tensors(module)
    copies: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) in copies:
            continue
        if hasattr(tensor, "to_local"):
            copies[id(tensor)] = whole(local(tensor), tensor)  # This call is collective, so every rank must make it.
        elif keep:
            copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
    return {name: copies[id(tensor)] for name, tensor in tensors.items()} if keep else {}


@contextmanager
def stand_in(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Let other values stand in the module within a ``with`` block; afterwards the old ones are back, to the bit.

    The block gets the old values, by name, of sharded tensors this rank's part.
    """
    targets = {id(tensor): (name, tensor) for name, tensor in persistent_tensors(module).items() if name in values}
    before = {name: local(tensor).clone() for name, tensor in targets.values()}
    try:
        with torch.no_grad():
            reshard(module)
            for name, tensor in targets.values():
                local(tensor).copy_(shard_of(values[name], tensor))
        yield before
    finally:
        with torch.no_grad():
            reshard(module)
            for name, tensor in targets.values():
                local(tensor).copy_(before[name])
