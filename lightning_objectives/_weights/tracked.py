"""The tensors of a network that are averaged: they join, are moved, and are cast, and are found again."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_objectives._weights.shards import address, local


class Tracked:
    """The trainable parameters of a network, tied ones once, and lists of them that cost no walk through the modules.

    Args:
        network: whose parameters they are.
        buffers: whether its floating buffers are among them.
        device: where the averages are; beside each tensor by default.
    """

    def __init__(self, network: nn.Module, *, buffers: bool, device: torch.device | None) -> None:
        self.network = network
        self.buffers = buffers
        self.device = device
        self.parameters: dict[str, nn.Parameter] = {}
        self.waiting: list[nn.Parameter] = []
        """Parameters that are not trainable yet."""
        self.names: list[str] = []
        self.live: list[Tensor] = []
        """The tensors themselves, without their graph; of a DTensor this rank's shard."""
        self.inputs: list[Tensor] = []
        """The same in the type and place of the averages."""

    def collect(self) -> list[str]:
        """Look for trainable parameters that are not known yet; returns their names."""
        known = {id(p) for p in self.parameters.values()}
        # A child that keeps its state out of the state dict is lent by somebody who takes it away again.
        lent = [child for child in self.network.children() if not child.state_dict()]
        known |= {id(p) for child in lent for p in child.parameters()}
        self.waiting = []
        joining = []
        for name, parameter in plainly_named(self.network.named_parameters()):
            if id(parameter) in known:
                continue
            if _averaged(parameter):
                self.parameters[name] = parameter
                joining.append(name)
            else:
                self.waiting.append(parameter)
        self.bind()
        return joining

    def waits_no_more(self) -> bool:
        """Whether a parameter has become trainable."""
        return any(map(_averaged, self.waiting))

    def sources(self) -> dict[str, Tensor]:
        """What is averaged, by name, as the network holds it."""
        found: dict[str, Tensor] = dict(self.parameters)
        if self.buffers:
            # Looked up anew each time: modules often assign a new tensor to a buffer.
            found |= {name: b for name, b in plainly_named(self.network.named_buffers()) if b.is_floating_point()}
        return found

    @torch.no_grad()
    def bind(self) -> None:
        """Make the lists."""
        with torch.inference_mode(False):
            sources = self.sources()
            self.names = list(sources)
            self.live = [local(tensor) for tensor in sources.values()]
            self._addresses = [tensor.data_ptr() for tensor in self.live]
            self.sharded = any(hasattr(tensor, "to_local") for tensor in sources.values())
            self._address = address if self.sharded else Tensor.data_ptr
            self.inputs, self._cast = [], []
            for tensor in self.live:
                wanted = self.shadow(tensor)
                same = (tensor.device, tensor.dtype) == wanted
                # Half types and other devices go through a copy that is allocated once.
                self.inputs.append(tensor if same else _beside(tensor, *wanted))
                if not same:
                    self._cast.append((self.inputs[-1], tensor))
            self.fetch()

    def moved(self) -> bool:
        """Whether a parameter was moved or cast, or a buffer replaced, since the lists were made."""
        # The cached views keep the old storages alive, so that a new one never has an old address.
        tensors = self.sources() if self.buffers else self.parameters
        return [*map(self._address, tensors.values())] != self._addresses

    def shadow(self, tensor: Tensor) -> tuple[torch.device, torch.dtype]:
        """Where the average of a tensor is, and in which type."""
        return self.device or tensor.device, torch.promote_types(tensor.dtype, torch.float32)

    def fetch(self) -> None:
        """Bring what is not of the averages' type and place into ``inputs``."""
        if self._cast:
            torch._foreach_copy_([to for to, _ in self._cast], [source for _, source in self._cast], non_blocking=True)
            for device in {source.device for to, source in self._cast if to.device.type == "cpu"}:
                if device.type != "cpu":  # all copies are on their way before the one wait
                    torch.get_device_module(device).synchronize()


def _beside(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """An empty tensor for copies of ``tensor``, in memory that the other device can write to by itself."""
    pinned = tensor.device.type == "cuda" and device.type == "cpu"
    return torch.empty_like(tensor, device=device, dtype=dtype, pin_memory=pinned)


def _averaged(parameter: nn.Parameter) -> bool:
    if not parameter.requires_grad or is_lazy(parameter):
        return False
    return parameter.is_floating_point() or parameter.is_complex()


def plain_name(name: str) -> str:
    """A name without what torch.compile puts into it."""
    return name.replace("_orig_mod.", "")


def plainly_named(tensors: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Tensors by their :func:`plain_name`."""
    return [(plain_name(name), tensor) for name, tensor in tensors]
