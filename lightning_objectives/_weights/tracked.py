"""Finds the tensors of a network that are averaged, and finds them again when they are new, moved or cast."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_objectives._files.names import plainly_named
from lightning_objectives._weights.shards import address, local
from lightning_objectives._weights.whole_state import lent_children


class Tracked:
    """Lists the trainable parameters of a network, tied ones once, so that an update does not walk through the modules.

    Args:
        network: the network that holds the parameters.
        buffers: whether the floating buffers of the network are averaged too.
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
        """The same values in the type and on the device of the averages."""

    def collect(self) -> list[str]:
        """Look for trainable parameters that are not known yet, and return their names."""
        known = {id(p) for p in self.parameters.values()}
        known |= {id(p) for child in lent_children(self.network).values() for p in child.parameters()}
        self.waiting = []
        joining = []
        for name, parameter in plainly_named(self.network.named_parameters()):
            if id(parameter) in known:
                continue
            if _is_averaged(parameter):
                self.parameters[name] = parameter
                joining.append(name)
            else:
                self.waiting.append(parameter)
        self.bind()
        return joining

    def any_unfrozen(self) -> bool:
        """Whether a parameter that was waiting has become trainable."""
        return any(map(_is_averaged, self.waiting))

    def sources(self) -> dict[str, Tensor]:
        """The tensors that are averaged, by name, as the network holds them."""
        tensors: dict[str, Tensor] = dict(self.parameters)
        if self.buffers:
            # Modules often assign a new tensor to a buffer, so the buffers are looked up each time.
            tensors |= {name: b for name, b in plainly_named(self.network.named_buffers()) if b.is_floating_point()}
        return tensors

    @torch.no_grad()
    def bind(self) -> None:
        """Make the lists anew from what the network holds now."""
        with torch.inference_mode(False):
            sources = self.sources()
            self.names = list(sources)
            self.live = [local(tensor) for tensor in sources.values()]
            self._addresses = [tensor.data_ptr() for tensor in self.live]
            self.sharded = any(hasattr(tensor, "to_local") for tensor in sources.values())
            self._address = address if self.sharded else Tensor.data_ptr
            self.inputs, self._copies = [], []
            for tensor in self.live:
                place = self.shadow(tensor)
                if (tensor.device, tensor.dtype) == place:
                    self.inputs.append(tensor)
                else:  # Half types and other devices go through a copy that is allocated once.
                    self.inputs.append(_empty_copy(tensor, *place))
                    self._copies.append((self.inputs[-1], tensor))
            self.fetch()

    def changed(self) -> bool:
        """Whether a parameter was moved or cast, or a buffer replaced, since :meth:`bind`."""
        # `live` keeps the old storages alive, so a new storage never gets an old address.
        tensors = self.sources() if self.buffers else self.parameters
        return [*map(self._address, tensors.values())] != self._addresses

    def shadow(self, tensor: Tensor) -> tuple[torch.device, torch.dtype]:
        """The device and the type of a tensor's average."""
        return self.device or tensor.device, torch.promote_types(tensor.dtype, torch.float32)

    def fetch(self) -> None:
        """Copy the tensors of other types or devices than their averages' into ``inputs``."""
        if self._copies:
            torch._foreach_copy_([to for to, _ in self._copies], [of for _, of in self._copies], non_blocking=True)
            for device in {source.device for to, source in self._copies if to.device.type == "cpu"}:
                if device.type != "cpu":  # All copies are under way before we wait for them, once.
                    torch.get_device_module(device).synchronize()


def _empty_copy(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """An empty tensor for copies of ``tensor``, in memory that the other device can write to by itself."""
    pinned = tensor.device.type == "cuda" and device.type == "cpu"
    return torch.empty_like(tensor, device=device, dtype=dtype, pin_memory=pinned)


def _is_averaged(parameter: nn.Parameter) -> bool:
    if not parameter.requires_grad or is_lazy(parameter):
        return False
    return parameter.is_floating_point() or parameter.is_complex()
