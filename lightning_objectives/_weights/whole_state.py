"""All that a module keeps in a checkpoint, by name: copied out, and swapped in for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_objectives._weights.shards import local, reshard, shard_of, whole


def persistent(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and the persistent buffers, tied ones under each of their names, without ``_orig_mod.``."""
    # A child that keeps its state out of the state dict is lent by somebody who takes it away again.
    lent = tuple(f"{name}." for name, child in module.named_children() if not child.state_dict())
    passing = {
        f"{path}.{name}".lstrip(".") for path, m in module.named_modules() for name in m._non_persistent_buffers_set
    }
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {
        name.replace("_orig_mod.", ""): tensor
        for name, tensor in named
        if name not in passing and not name.startswith(lent)
    }


@torch.no_grad()
def copied(module: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """A copy in the memory of the CPU, each tensor once; on ranks that do not keep it nothing but their part of it."""
    tensors = persistent(module)
    copies: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) in copies:
            continue
        if hasattr(tensor, "to_local"):
            copies[id(tensor)] = whole(local(tensor), tensor)  # all ranks take part
        elif keep:
            copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
    return {name: copies[id(tensor)] for name, tensor in tensors.items()} if keep else {}


@contextmanager
def standing_in(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, other values stand in the module; afterwards what stood there before, to the bit."""
    targets = {id(tensor): (name, tensor) for name, tensor in persistent(module).items() if name in values}
    before = [(local(tensor), local(tensor).clone()) for _, tensor in targets.values()]
    try:
        with torch.no_grad():
            reshard(module)
            for name, tensor in targets.values():
                local(tensor).copy_(shard_of(values[name], tensor))
        yield
    finally:
        with torch.no_grad():
            reshard(module)
            for target, held in before:
                target.copy_(held)
