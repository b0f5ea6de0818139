"""A GPU that is not there: finds code that waits for the device, or mixes devices, on a machine without one."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _len_torch_function_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Place = Literal["cpu", "gpu", "either"]
"""Where the memory of a tensor lies; ``either`` is what torch makes for itself, such as the zeros of a backward pass."""

GPU = torch.device("cuda", 0)
_aten: Any = torch.ops.aten
_WAITS = {
    _aten._linalg_eigh,
    _aten._linalg_svd,
    _aten._local_scalar_dense,
    _aten._unique2,
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
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray}
"""Functions that build a tensor on the host, and copy it to the device."""


class Wait(NamedTuple):
    """The host waits for the device."""

    what: str
    folder: str
    """The folder, the file and the line outside of torch that causes it, the innermost one."""
    file: str
    line: int
    function: str

    @property
    def place(self) -> tuple[str, str, int]:
        """The line that waits."""
        return self.folder, self.file, self.line

    def __str__(self) -> str:
        return f"{self.what} in {self.function} ({self.folder}/{self.file}:{self.line})"


class MixedDevices(RuntimeError):
    """An operation took tensors of the GPU and of the CPU."""


class FakeGPU:
    """Lets tensors lie on ``cuda:0`` for a while, with the memory and the values of the CPU.

    ``tensor.to("cuda")``, ``device="cuda"`` and ``module.cuda()`` work, and ``tensor.device`` answers ``cuda:0``. An
    operation on tensors of both devices raises :class:`MixedDevices`, as it does on a GPU. Each time the host would
    wait for the device, :attr:`waits` gets an entry. The rule is that of ``torch.cuda.set_sync_debug_mode``: ``item()``,
    ``bool(tensor)``, a boolean index, ``nonzero()``, and a copy from one device to the other that is not
    ``non_blocking``, such as that of ``torch.tensor(..., device="cuda")``. Values, backward passes and optimizers are
    those of the CPU, so code also runs on after it has waited.

    The class measures no time, knows no streams and no memory, and runs no kernel of a GPU.

    Example:
        >>> with FakeGPU() as gpu:
        ...     x = torch.ones(3, device="cuda")
        ...     y = x[x > 0].sum() + x.sum().item()
        >>> len(gpu.waits), x.device.type
        (2, 'cpu')
        >>> with FakeGPU():
        ...     torch.ones(3, device="cuda") + torch.ones(3)
        Traceback (most recent call last):
            ...
        lightning_objectives.testing.fake_gpu.MixedDevices: add takes tensors of the GPU and of the CPU.
    """

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        """All waits so far, in their order."""
        self.counts = True
        """Whether waits are counted now."""
        # A weak reference keeps the address of a storage from being used again.
        self._places: dict[int, tuple[StorageWeakRef, Place]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "FakeGPU":
        self._stack.enter_context(_patches(self))
        self._stack.enter_context(_Operations(self))
        self._stack.enter_context(_Devices(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Stands for ``torch._C.DisableTorchFunction``: no mode sees torch's functions but this one."""
        modes: list[TorchFunctionMode] = []
        while _len_torch_function_stack() and not isinstance(_get_current_function_mode(), _Devices):
            modes.append(_pop_mode())
        try:
            yield
        finally:
            while modes:
                _push_mode(modes.pop())

    def place(self, tensor: Tensor) -> Place:
        """Where a tensor lies; what is older than the fake lies on the CPU."""
        return self._places.get(tensor.untyped_storage()._cdata, (None, "cpu"))[1]

    def put(self, value: Any, place: Place) -> Any:
        """Let the tensors in a value lie there."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._places[storage._cdata] = StorageWeakRef(storage), place
        return value

    def knows(self, tensor: Tensor) -> bool:
        """Whether it is known where the tensor lies."""
        return tensor.untyped_storage()._cdata in self._places

    def wait(self, what: str) -> None:
        """Count a wait."""
        if self.counts:
            self.waits.append(Wait(what, *_origin()))


def _origin() -> tuple[str, str, int, str]:
    """The innermost line outside of torch, and of this file."""
    frame: Any = sys._getframe(1)
    hidden = (str(Path(torch.__file__).parent), __file__, "<frozen", "<string")
    while frame is not None and (
        frame.f_code.co_filename.startswith(hidden) or frame.f_code.co_name == "__torch_function__"
    ):
        frame = frame.f_back
    if frame is None:
        return "?", "?", 0, "?"
    path = Path(frame.f_code.co_filename)
    return path.parent.name, path.name, frame.f_lineno, frame.f_code.co_name


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class _Operations(TorchDispatchMode):
    """Sees each operation, also those of backward passes."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors(args, kwargs)
        places = [self.gpu.place(tensor) for tensor in tensors]
        packet = func.overloadpacket
        if "gpu" in places:
            self._look(packet, args, tensors, places)
        known = {tensor.untyped_storage()._cdata for tensor in tensors}
        place: Place = "gpu" if "gpu" in places else "cpu" if "cpu" in places else "either"
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            if tensor.untyped_storage()._cdata not in known:
                self.gpu.put(tensor, place)
        return result

    def _look(self, packet: Any, args: Any, tensors: Sequence[Tensor], places: Sequence[Place]) -> None:
        name = packet.__name__.strip("_")
        if packet in _COPIES:
            if {"cpu", "gpu"} <= {*places} and not (len(args) > 2 and args[2]):
                self.gpu.wait(f"{name}() between the devices")
            return
        if packet in _INDEXED:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                fills = packet is not _aten.index and args[2].numel() == 1  # That is a masked_fill.
                if not fills:
                    self.gpu.wait("boolean index")
            elif self.gpu.place(args[0]) == "gpu" and any(self.gpu.place(index) == "cpu" for index in indices):
                self.gpu.wait("an index from the CPU")
            tensors, places = _without(indices, tensors, places)
        if packet in _WAITS:
            self.gpu.wait({"local_scalar_dense": "item()"}.get(name, f"{name}()"))
        if "gpu" in places and any(p == "cpu" and tensor.dim() > 0 for tensor, p in zip(tensors, places)):
            raise MixedDevices(f"{name} takes tensors of the GPU and of the CPU.")


def _without(
    indices: Sequence[Tensor], tensors: Sequence[Tensor], places: Sequence[Place]
) -> tuple[list[Tensor], list[Place]]:
    """The other tensors: torch moves an index to the device of what it is for."""
    rest = [(t, p) for t, p in zip(tensors, places) if not any(t is index for index in indices)]
    return [t for t, _ in rest], [p for _, p in rest]


class _Devices(TorchFunctionMode):
    """Sees what code says and asks about devices."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu
        self._own: dict[Any, Callable[..., Any]] = {
            Tensor.device.__get__: self._device,  # type: ignore[attr-defined]  # of torch
            Tensor.is_cuda.__get__: lambda tensor: gpu.place(tensor) == "gpu",  # type: ignore[attr-defined]
            Tensor.is_cpu.__get__: lambda tensor: gpu.place(tensor) != "gpu",  # type: ignore[attr-defined]
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
        result = func(*args, **kwargs)
        sources = _tensors(args, kwargs)
        if device is None:
            for tensor in _tensors(result) if sources else ():
                if not self.gpu.knows(tensor):  # Its storage was made outside of torch's operations, as by a deepcopy.
                    self.gpu.put(tensor, self.gpu.place(sources[0]))
            return result if sources else self.gpu.put(result, "cpu")
        place: Place = "gpu" if torch.device(device).type == "cuda" else "cpu"
        if isinstance(result, Tensor) and func in _FROM_DATA:
            if any(result is source for source in sources):
                return self._moved(result, place, wait=True)  # as_tensor of a tensor
            start: Place = self.gpu.place(sources[0]) if sources else "cpu"
            if start != place:
                self.gpu.wait(f"{func.__name__}() of data")
        return self.gpu.put(result, place)

    def _device(self, tensor: Tensor) -> torch.device:
        return GPU if self.gpu.place(tensor) == "gpu" else torch.device("cpu")

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
        before = self.gpu.place(tensor)
        if before == place:
            return tensor
        if wait and before != "either":
            self.gpu.wait(f"a copy to the {place.upper()}")
        moved: Tensor = self.gpu.put(tensor.clone(), place)
        return moved

    def _tolist(self, tensor: Tensor) -> Any:
        if self.gpu.place(tensor) == "gpu":
            self.gpu.wait("tolist()")
        return tensor.tolist()

    def _numpy(self, tensor: Tensor, **kwargs: Any) -> Any:
        if self.gpu.place(tensor) == "gpu":
            raise TypeError("can't convert a tensor of the GPU to numpy: copy it to the CPU first.")
        return tensor.numpy(**kwargs)

    def _one_hot(self, tensor: Tensor, num_classes: int = -1) -> Tensor:
        """On a GPU the classes are not checked, and without their number it waits."""
        if self.gpu.place(tensor) != "gpu" or num_classes < 0:
            return F.one_hot(tensor, num_classes)
        zeros = torch.zeros(*tensor.shape, num_classes, dtype=torch.long)
        one_hot: Tensor = self.gpu.put(zeros, "gpu").scatter(-1, tensor.unsqueeze(-1), 1)
        return one_hot

    def _repeated(self, tensor: Tensor, repeats: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """By a tensor of counts it waits, unless the size of the output is known."""
        counts = tensor if repeats is None else repeats
        if isinstance(counts, Tensor) and self.gpu.place(counts) == "gpu" and kwargs.get("output_size") is None:
            self.gpu.wait("repeat_interleave()")
        given = () if repeats is None else (repeats,)
        return torch.repeat_interleave(tensor, *given, *args, **kwargs)


class _OfTheHost(type):
    """Makes every generator one of the CPU."""

    def __call__(cls, device: Any = None) -> Any:
        return _HOST_GENERATOR()

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _HOST_GENERATOR)


_HOST_GENERATOR = torch.Generator


class _Generator(metaclass=_OfTheHost):
    """Stands for ``torch.Generator``, also in annotations."""


@contextmanager
def _patches(gpu: FakeGPU) -> Iterator[None]:
    """What no mode sees: generators, and the functions of ``torch.cuda`` that a training calls."""

    def seeded(seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    @contextmanager
    def device(_: Any) -> Iterator[None]:
        yield

    def synchronize(*_: Any) -> None:
        gpu.wait("synchronize()")

    stream = SimpleNamespace(synchronize=synchronize)
    with (
        mock.patch.object(torch, "Generator", _Generator),
        mock.patch.object(torch._C, "DisableTorchFunction", gpu.alone),
        mock.patch.multiple(
            torch.cuda,
            get_rng_state=lambda *_: torch.get_rng_state(),
            set_rng_state=lambda state, *_: torch.set_rng_state(state),
            manual_seed=seeded,
            device=device,
            synchronize=synchronize,
            current_stream=lambda *_: stream,
        ),
    ):
        yield
