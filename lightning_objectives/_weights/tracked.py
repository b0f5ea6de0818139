"""Finds the tensors of a network that are averaged, and finds them again when they are new, moved or cast."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

from lightning_objectives._files.names import plainly_named
from lightning_objectives._weights.shards import address, local
from lightning_objectives._weights.whole_state import lent_children


class Tracked:
    """Lists the trainable parameters of a network, tied ones once, so that an update does not walk through the modules.

    Args:
        network: the network that holds the parameters.
        buffers: whether the floating buffers of the network are averaged too.
        device: where the averages are; beside each tensor by default.
        patterns: the patterns of the names of the parameters that are listed; None lists all.

    Raises:
        ValueError: a pattern that no name matches.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        buffers: bool,
        device: torch.device | None,
        patterns: Sequence[str] | None = None,
    ) -> None:
        names = [name for name, _ in plainly_named(network.named_parameters())]
        for pattern in patterns or ():
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"parameters={pattern!r} matches no parameter of {type(network).__name__}, whose names are such as "
                    f"{names[:5]}. Use a pattern in which * stands for anything, such as 'layers.*'."
                )
        self.patterns = patterns
        self.network = network
        self.buffers = buffers
        self.device = device
        self.parameters: dict[str, nn.Parameter] = {}
        self.sharded = False
        self.waiting: list[nn.Parameter] = []
        """Parameters that are not trainable yet."""
        self.names: list[str] = []
        self.live: list[Tensor] = []
        """The tensors themselves, without their graph; of a DTensor this rank's shard."""
        self.inputs: list[Tensor] = []
        """The same values in the type and on the device of the averages."""

    def collect(self) -> dict[str, str]:
        """Walk through the network and list its parameters anew.

        A parameter that is known stays in its place, also under another name, and so does one that replaces it under
        its name. Those that are new come last; those that the network no longer has are dropped.

        Returns:
            For each parameter that was known, its name and the one that it had before.
        """
        lent = {id(p) for child in lent_children(self.network).values() for p in child.parameters()}
        named = [(n, p) for n, p in plainly_named(self.network.named_parameters()) if id(p) not in lent]
        named = [(name, p) for name, p in named if self._is_chosen(name)]
        names = {id(p): name for name, p in named}
        known = {id(p) for p in self.parameters.values()}
        unknown = {name: p for name, p in named if id(p) not in known}
        before, self.parameters, earlier_names = self.parameters, {}, {}
        for earlier, parameter in before.items():
            name = names.get(id(parameter))
            if name is None and earlier in unknown and not is_lazy(unknown[earlier]):
                name, parameter = earlier, unknown.pop(earlier)
            if name is not None:
                name = earlier if name == f"{earlier}_orig" else name  # torch.nn.utils.prune adds it for a while.
                self.parameters[name], earlier_names[name] = parameter, earlier
        self.waiting = [p for p in unknown.values() if not _is_averaged(p)]
        self.parameters |= {name: p for name, p in unknown.items() if _is_averaged(p)}
        self._note_homes()
        self.bind()
        return earlier_names

    def _is_chosen(self, name: str) -> bool:
        name = name.removesuffix("_orig")  # torch.nn.utils.prune adds it for a while.
        return self.patterns is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)

    def _note_homes(self) -> None:
        """Note where each parameter and each module lies, to see when another takes its place."""
        places: list[tuple[dict[str, Any], str]] = []
        tracked = {id(p) for p in self.parameters.values()}
        for module in self.network.modules():
            places += [(module._modules, key) for key in module._modules]
            places += [(module._parameters, key) for key, p in module._parameters.items() if id(p) in tracked]
        self._homes, self._keys = [home for home, _ in places], [key for _, key in places]
        self._lying = [home[key] for home, key in places]  # Keeps them alive, so that none gets the id of another.
        self._ids = [*map(id, self._lying)]

    def any_unfrozen(self) -> bool:
        """Whether a parameter that was waiting has become trainable."""
        return any(map(_is_averaged, self.waiting))

    def sources(self) -> dict[str, Tensor]:
        """The tensors that are averaged, by name, as the network holds them."""
        tensors: dict[str, Tensor] = dict(self.parameters)
        if self.buffers:
            # Modules often assign a new tensor to a buffer, so the buffers are looked up each time.
            buffers = plainly_named(self.network.named_buffers())
            tensors |= {name: b for name, b in buffers if b.is_floating_point() and type(b) is not UninitializedBuffer}
        return tensors

    @torch.no_grad()
    def bind(self) -> None:
        """Make the lists anew from what the network holds now."""
        with torch.inference_mode(False):
            sources = self.sources()
            self.names = list(sources)
            self.live = [local(tensor) for tensor in sources.values()]
            self._addresses = [tensor.data_ptr() for tensor in self.live]
            self._layouts = [(tensor.shape, tensor.stride()) for tensor in self.live]
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
        """Whether a parameter was replaced, moved or cast, or a buffer replaced or added, since :meth:`bind`."""
        # `live` keeps the old storages alive, so a new storage never gets an old address.
        tensors = self.sources() if self.buffers else self.parameters
        places = self._ids if self.sharded else [*map(id, map(dict.get, self._homes, self._keys))]
        return [*map(self._address, tensors.values())] != self._addresses or places != self._ids

    def same_places(self) -> bool:
        """Whether each parameter and each module lies where it lay at :meth:`collect`."""
        # FSDP2 lets gathered weights lie in the place of its shards for a while.
        return self.sharded or [*map(id, map(dict.get, self._homes, self._keys))] == self._ids

    def laid_out_anew(self) -> bool:
        """Whether a tensor has another shape or other strides than at :meth:`bind`, in the same memory."""
        return [(t.shape, t.stride()) for t in map(local, self.sources().values())] != self._layouts

    def masks(self) -> dict[str, Tensor]:
        """The masks of the parameters that torch.nn.utils.prune prunes now, by the parameter's name before that."""
        names = {id(p): name for name, p in self.parameters.items() if not name.endswith("_orig")}
        masks = {}
        for module in self.network.modules():
            for key, parameter in module._parameters.items():
                mask = module._buffers.get(f"{key.removesuffix('_orig')}_mask")
                if mask is not None and id(parameter) in names:
                    masks[names[id(parameter)]] = mask
        return masks

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
    # An optimizer also steps a parameter that needs no gradient, if the user gave it one.
    if is_lazy(parameter) or not (parameter.requires_grad or parameter.grad is not None):
        return False
    return parameter.is_floating_point() or parameter.is_complex()
