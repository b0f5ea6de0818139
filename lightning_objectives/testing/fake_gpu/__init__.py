"""A GPU that is not there: finds code that waits for the device, or mixes devices, on a machine without one."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import overrides

from lightning_objectives.testing.fake_gpu.functions import Functions
from lightning_objectives.testing.fake_gpu.operations import Operations
from lightning_objectives.testing.fake_gpu.places import GPUGenerator, HostGenerator, MixedDevicesError, Places, Wait

_modes: Any = overrides  # without annotations
__all__ = ["FakeGPU", "MixedDevicesError", "Wait"]


class FakeGPU(Places):
    """Lets tensors lie on ``cuda:0`` for a while, with the memory and the values of the CPU.

    ``tensor.to("cuda")``, ``device="cuda"`` and ``module.cuda()`` work, and ``tensor.device`` answers ``cuda:0``. An
    operation on tensors of both devices raises :class:`MixedDevicesError`, as it fails on a GPU. Each time the host
    would wait for the device, :attr:`waits` gets an entry. The rule is that of ``torch.cuda.set_sync_debug_mode``:
    ``item()``, ``bool(tensor)``, a boolean index, ``nonzero()``, and a copy from one device to the other that is not
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
        lightning_objectives.testing.fake_gpu.places.MixedDevicesError: add takes tensors of the GPU and of the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()

    def __enter__(self) -> "FakeGPU":
        self._stack.enter_context(_patches(self))
        self._stack.enter_context(Operations(self))
        self._stack.enter_context(Functions(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Stands for ``torch._C.DisableTorchFunction``: no mode sees torch's functions but this one."""
        modes: list[Any] = []
        while _modes._len_torch_function_stack() and not isinstance(_modes._get_current_function_mode(), Functions):
            modes.append(_modes._pop_mode())
        try:
            yield
        finally:
            while modes:
                _modes._push_mode(modes.pop())


class _OfEither(type):
    """Makes generators of either device."""

    def __call__(cls, device: Any = "cpu") -> Any:
        return (GPUGenerator if torch.device(device).type == "cuda" else HostGenerator)()

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, HostGenerator)


class _Generator(metaclass=_OfEither):
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
