"""Sees each operation on tensors: what waits, what mixes devices, and where the result lies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_objectives.testing.fake_gpu.places import MixedDevicesError, Place, Places, storage_of, tensors_in

_Mode: Any = TorchDispatchMode  # without annotations
_aten: Any = torch.ops.aten
_WAITS = {
    _aten._linalg_eigh,
    _aten._linalg_svd,
    _aten._local_scalar_dense,
    _aten._unique,
    _aten._unique2,
    _aten.allclose,
    _aten.bincount,
    _aten.equal,
    _aten.linalg_eig,
    _aten.linalg_lstsq,
    _aten.masked_scatter_backward,
    _aten.masked_select,
    _aten.multinomial,
    _aten.nonzero,
    _aten.unique_consecutive,
    _aten.unique_dim,
}
"""Operations that read the device: their result, its size, or a check of theirs is needed on the host."""
_COPIES = {_aten.copy_, _aten._foreach_copy_}
_ASKS = {_aten._has_compatible_shallow_copy_type}
"""Questions about two tensors, which read neither: ``Module.to`` asks one in inference mode."""
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


class Operations(_Mode):  # type: ignore[misc]  # of torch
    """Sees each operation, also those of backward passes."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.known = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in(args, kwargs)
        places = [self.known.place(tensor) for tensor in tensors]
        packet = func.overloadpacket
        if "gpu" in places and packet not in _ASKS:
            self._look(packet, args, tensors, places)
        known = {storage_of(tensor)._cdata for tensor in tensors}
        place: Place = "gpu" if "gpu" in places else "cpu" if "cpu" in places else "either"
        result = func(*args, **kwargs)
        for tensor in tensors_in(result) if packet is not _aten.set_ else ():  # That takes memory as it is.
            if storage_of(tensor)._cdata not in known:
                self.known.put(tensor, place)
        return result

    def _look(self, packet: Any, args: Any, tensors: Sequence[Tensor], places: Sequence[Place]) -> None:
        name = packet.__name__.strip("_")
        if packet in _COPIES:
            if {"cpu", "gpu"} <= {*places} and not (len(args) > 2 and args[2]):
                self.known.wait(f"{name}() between the devices")
            return
        if packet in _INDEXED:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                fills = packet is not _aten.index and args[2].numel() == 1  # That is a masked_fill.
                if not fills:
                    self.known.wait("boolean index")
            elif self.known.place(args[0]) == "gpu" and any(self.known.place(index) == "cpu" for index in indices):
                self.known.wait("an index from the CPU")
            tensors, places = _without(indices, tensors, places)
        if packet is _aten.where and any(p == "cpu" and tensor.dim() == 0 for tensor, p in zip(tensors, places)):
            self.known.wait("a number from the CPU in where()")  # Other operations take it along without a copy.
        if packet in _WAITS:
            self.known.wait({"local_scalar_dense": "item()"}.get(name, f"{name}()"))
        if "gpu" in places and any(p == "cpu" and tensor.dim() > 0 for tensor, p in zip(tensors, places)):
            raise MixedDevicesError(f"{name} takes tensors of the GPU and of the CPU.")


def _without(
    indices: Sequence[Tensor], tensors: Sequence[Tensor], places: Sequence[Place]
) -> tuple[list[Tensor], list[Place]]:
    """The other tensors: torch moves an index to the device of what it is for."""
    rest = [(t, p) for t, p in zip(tensors, places) if not any(t is index for index in indices)]
    return [t for t, _ in rest], [p for _, p in rest]
