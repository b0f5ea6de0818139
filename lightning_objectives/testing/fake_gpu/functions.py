"""Sees what code says and asks about devices."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_objectives.testing.fake_gpu.places import GPU, Place, Places, check_generator, tensors_in

_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray}
"""Functions that build a tensor on the host, and copy it to the device."""


class Functions(TorchFunctionMode):
    """Sees what code says and asks about devices."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.known = places
        self._own: dict[Any, Callable[..., Any]] = {
            Tensor.device.__get__: self._device,
            Tensor.is_cuda.__get__: lambda tensor: places.place(tensor) == "gpu",  # type: ignore[attr-defined]
            Tensor.is_cpu.__get__: lambda tensor: places.place(tensor) != "gpu",  # type: ignore[attr-defined]
            Tensor.__deepcopy__: self._deepcopy,
            Tensor.to: self._to,
            Tensor.type_as: lambda tensor, other: self._to(tensor, other),
            Tensor.cpu: lambda tensor, **_: self._moved(tensor, "cpu", wait=True),
            Tensor.cuda: lambda tensor, device=None, non_blocking=False, **_: self._moved(
                tensor, "gpu", wait=not non_blocking
            ),
            Tensor.pin_memory: lambda tensor, *_: tensor,
            Tensor.tolist: self._tolist,
            Tensor.numpy: self._numpy,
            F.one_hot: self._one_hot,
            torch._C._nn._parse_to: torch._C._nn._parse_to,
            torch.repeat_interleave: self._repeated,
            Tensor.repeat_interleave: self._repeated,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        own = self._own.get(func)
        if own is not None:
            return own(*args, **kwargs)
        kwargs.pop("pin_memory", None)
        device = kwargs.pop("device", None)
        sources = tensors_in(args, kwargs)
        start: Place = self.known.place(sources[0]) if sources else "cpu"
        place: Place = start if device is None else "gpu" if torch.device(device).type == "cuda" else "cpu"
        if kwargs.get("generator") is not None:
            check_generator(func.__name__, kwargs["generator"], place)
        result = func(*args, **kwargs)
        if device is None:
            for tensor in tensors_in(result) if sources else ():
                if not self.known.knows(tensor):  # Its memory was made outside of torch's operations.
                    self.known.put(tensor, start)
            return result if sources else self.known.put(result, "cpu")
        if isinstance(result, Tensor) and func in _FROM_DATA:
            if any(result is source for source in sources):
                return self._moved(result, place, wait=True)  # as_tensor of a tensor
            if start != place:
                self.known.wait(f"{func.__name__}() of data")
        return self.known.put(result, place)

    def _device(self, tensor: Tensor) -> torch.device:
        return GPU if self.known.place(tensor) == "gpu" else torch.device("cpu")

    def _deepcopy(self, tensor: Tensor, memo: Any) -> Any:
        """The memory is copied byte by byte, wherever it lies."""
        counts, self.known.counts = self.known.counts, False
        try:
            copied = Tensor.__deepcopy__(tensor, memo)  # type: ignore[no-untyped-call]  # torch
        finally:
            self.known.counts = counts
        return self.known.put(copied, self.known.place(tensor))

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        other = next((a for a in (*args, kwargs.get("other")) if isinstance(a, Tensor)), None)
        copies = kwargs.pop("copy", False)
        if other is not None:
            device, dtype, blocking = self._device(other), other.dtype, not kwargs.get("non_blocking", False)
        else:
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
            blocking = not non_blocking
        changed = tensor if dtype is None else tensor.to(dtype)
        if device is not None:
            changed = self._moved(changed, "gpu" if device.type == "cuda" else "cpu", wait=blocking)
        return changed.clone() if copies and changed is tensor else changed

    def _moved(self, tensor: Tensor, place: Place, *, wait: bool) -> Tensor:
        before = self.known.place(tensor)
        if before == place:
            return tensor
        if wait and before != "either":
            self.known.wait(f"a copy to the {place.upper()}")
        moved: Tensor = self.known.put(tensor.clone(), place)
        return moved

    def _tolist(self, tensor: Tensor) -> Any:
        if self.known.place(tensor) == "gpu":
            self.known.wait("tolist()")
        return tensor.tolist()

    def _numpy(self, tensor: Tensor, **kwargs: Any) -> Any:
        if self.known.place(tensor) == "gpu":
            raise TypeError("can't convert a tensor of the GPU to numpy: copy it to the CPU first.")
        return tensor.numpy(**kwargs)

    def _one_hot(self, tensor: Tensor, num_classes: int = -1) -> Tensor:
        """On a GPU the classes are not checked, and without their number it waits."""
        if self.known.place(tensor) != "gpu" or num_classes < 0:
            return F.one_hot(tensor, num_classes)
        zeros = torch.zeros(*tensor.shape, num_classes, dtype=torch.long)
        one_hot: Tensor = self.known.put(zeros, "gpu").scatter(-1, tensor.unsqueeze(-1), 1)
        return one_hot

    def _repeated(self, tensor: Tensor, repeats: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """By a tensor of counts it waits, unless the size of the output is known."""
        counts = tensor if repeats is None else repeats
        if isinstance(counts, Tensor) and self.known.place(counts) == "gpu" and kwargs.get("output_size") is None:
            self.known.wait("repeat_interleave()")
        given = () if repeats is None else (repeats,)
        return torch.repeat_interleave(tensor, *given, *args, **kwargs)
