"""Where each tensor lies, and what waited."""

import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

Place = Literal["cpu", "gpu", "either"]
"""Where the memory of a tensor lies; ``either`` is what torch makes for itself, as in a backward pass."""
GPU = torch.device("cuda", 0)
_weak: Any = StorageWeakRef  # without annotations


HostGenerator = torch.Generator
"""The class itself, which something else stands for while there is a GPU."""


class GPUGenerator(HostGenerator):
    """Draws for tensors on the GPU, as ``torch.Generator("cuda")`` does."""

    device = property(lambda _: GPU)


class Wait(NamedTuple):
    """The host waits for the device."""

    what: str
    path: Path
    """The file, the line and the function outside of torch that cause it, the innermost ones."""
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.what} in {self.function} ({self.path.parent.name}/{self.path.name}:{self.line})"


class MixedDevicesError(RuntimeError):
    """An operation took tensors of the GPU and of the CPU."""


def storage_of(tensor: Tensor) -> Any:
    """The memory of a tensor, also of one that torch.func has wrapped."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


class Places:
    """Knows where each tensor lies, and counts the waits."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        """All waits so far, in their order."""
        self.counts = True
        """Whether waits are counted now."""
        # A weak reference keeps the address of a storage from being used again.
        self._places: dict[int, tuple[Any, Place]] = {}

    def place(self, tensor: Tensor) -> Place:
        """Where a tensor lies; what is older than the fake lies on the CPU."""
        return self._places.get(storage_of(tensor)._cdata, (None, "cpu"))[1]

    def put(self, value: Any, place: Place) -> Any:
        """Let the tensors in a value lie there."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                storage = storage_of(tensor)
                self._places[storage._cdata] = _weak(storage), place
        return value

    def knows(self, tensor: Tensor) -> bool:
        """Whether it is known where the tensor lies."""
        return storage_of(tensor)._cdata in self._places

    def wait(self, what: str) -> None:
        """Count a wait."""
        if self.counts:
            self.waits.append(Wait(what, *_origin()))


def _origin() -> tuple[Path, int, str]:
    """The innermost line outside of torch, and of this folder."""
    frame: Any = sys._getframe(1)
    hidden = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<frozen", "<string")
    while frame is not None and (
        frame.f_code.co_filename.startswith(hidden) or frame.f_code.co_name == "__torch_function__"
    ):
        frame = frame.f_back
    if frame is None:
        return Path("?"), 0, "?"
    return Path(frame.f_code.co_filename), frame.f_lineno, frame.f_code.co_name


def tensors_in(*values: Any) -> list[Tensor]:
    """All tensors in nested values."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def check_generator(name: str, generator: torch.Generator, place: Place) -> None:
    """Refuse a generator of the other device, as torch does."""
    own: Place = "gpu" if isinstance(generator, GPUGenerator) else "cpu"
    if place not in (own, "either"):
        raise MixedDevicesError(f"{name} draws for the {place.upper()} from a generator of the {own.upper()}.")
