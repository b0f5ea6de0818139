"""What a second pass over the same batch must find, and leave: weights, random streams, buffers, metrics and logs."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_objectives._trainer.patch import Patch
from lightning_objectives._trainer.random import Streams


class MovedWeights:
    """Adds offsets to parameters, and puts them back to the bit.

    Parameters whose memory nobody else sees get other memory for that time, which saves two copies. Others, such as
    parts of one flat vector, change in place, so that every view of them moves too.

    Args:
        params: the parameters, by name.
        offsets: what to add, for some of the names.
        in_place: change all of them in place, as compiled code needs, which knows where they lie.
    """

    def __init__(self, params: Mapping[str, Tensor], offsets: Mapping[str, Tensor], *, in_place: bool = False) -> None:
        moves = list(offsets.values())
        self.params = [params[name] for name in offsets]
        self._in_place = in_place or not all(map(_owns_its_memory, self.params))
        with torch.no_grad():
            if self._in_place:
                self.copies = [param.detach().clone() for param in self.params]
                torch._foreach_add_(self.params, moves)
            else:
                self.copies = [param.data for param in self.params]
                for param, moved in zip(self.params, torch._foreach_add(self.copies, moves)):
                    param.data = moved
        torch.clear_autocast_cache()  # Autocast keeps the weights in half precision as they were at their first use.

    def restore(self) -> None:
        """Put the weights back."""
        with torch.no_grad():
            if self._in_place:
                torch._foreach_copy_(self.params, self.copies)
            else:
                for param, values in zip(self.params, self.copies):
                    param.data = values
        torch.clear_autocast_cache()


_uses: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)
_OWN = torch.empty(1)
_ALONE = 0 if _uses is None else _uses(_OWN.untyped_storage()._cdata)
"""How many hold the memory of a tensor that nobody else sees."""


def _owns_its_memory(tensor: Tensor) -> bool:
    """Whether it is certain that no other tensor shares a tensor's memory.

    >>> weight = torch.ones(2, 2)
    >>> _owns_its_memory(weight)
    True
    >>> view = weight.T
    >>> _owns_its_memory(weight)
    False
    """
    return (
        _uses is not None
        and type(tensor) in (Tensor, nn.Parameter)
        and _uses(tensor.untyped_storage()._cdata) == _ALONE
    )


class Surroundings:
    """What a training step changes besides gradients: the global random streams, buffers and torchmetrics.

    Args:
        modules: the modules that have the buffers and the metrics.
        device: what the training runs on.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self.streams = Streams(device)
        self.buffers: list[tuple[nn.Module, str, Tensor | None]] = []
        """The owner of each buffer, its name, and itself."""
        self.metrics: list[tuple[nn.Module, dict[str, Any]]] = []
        metric = getattr(sys.modules.get("torchmetrics"), "Metric", ())
        for module in _all_modules(modules):
            self.buffers += [(module, name, buffer) for name, buffer in module._buffers.items()]
            if isinstance(module, metric):
                self.metrics.append((module, dict(_states(module))))
        self.copies = Copies(buffer for *_, buffer in self.buffers if buffer is not None)
        """The values of the buffers."""

    def restore(self, *, buffers: bool = True) -> None:
        """Put everything back, or all but the buffers, whose values the backward pass may still need."""
        self.streams.restore()
        for metric, states in self.metrics:
            vars(metric).update(states)
        if buffers:
            self.restore_buffers()

    def restore_buffers(self) -> None:
        """Put the buffers back."""
        self.copies.restore()
        for module, name, buffer in self.buffers:
            module._buffers[name] = buffer

    def values_by_place(self) -> dict[int, Tensor]:
        """The values of the buffers, by where these lie in memory."""
        return {tensor.data_ptr(): values for tensor, values in self.copies.pairs()}


class Copies:
    """Copies of many tensors, made and put back in one call for those alike: on a GPU calls are what takes the time.

    Args:
        tensors: of any shapes, types and devices.

    >>> buffers = [torch.ones(2), torch.tensor(3)]
    >>> copies = Copies(buffers)
    >>> _ = buffers[0].zero_(), buffers[1].add_(1)
    >>> copies.restore()
    >>> buffers
    [tensor([1., 1.]), tensor(3)]
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        alike: dict[Any, list[Tensor]] = {}
        for tensor in tensors:
            alike.setdefault((tensor.device, tensor.dtype, tensor.layout), []).append(tensor)
        self._alike = [(own, _cloned([tensor.detach() for tensor in own])) for own in alike.values()]

    def restore(self) -> None:
        """Put the values back."""
        with torch.no_grad():
            for tensors, copies in self._alike:
                torch._foreach_copy_(tensors, copies)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each tensor and the copy of its values."""
        for tensors, copies in self._alike:
            yield from zip(tensors, copies)


def _cloned(tensors: list[Tensor]) -> list[Tensor]:
    if tensors[0].layout is not torch.strided:
        return [tensor.clone() for tensor in tensors]
    copies = [torch.empty_like(tensor) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies


def _all_modules(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    """All modules in some modules, each once; five times as fast as ``modules()``, which takes part in each step."""
    found: dict[nn.Module, None] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting += [child for child in module._modules.values() if child is not None]
    return found


def _states(metric: nn.Module) -> Iterator[tuple[str, Any]]:
    """The states of a metric, which it may change in place."""
    for name, value in vars(metric).items():
        if isinstance(value, Tensor):
            yield name, value.detach().clone()
        elif isinstance(value, list):
            yield name, list(value)
        elif value is None or isinstance(value, (bool, int, float)):
            yield name, value


@contextmanager
def unchanged_state(module: nn.Module) -> Iterator[None]:
    """Let a module run once more without a change of its buffers and metrics; autograd may keep what it has read."""
    metric = getattr(sys.modules.get("torchmetrics"), "Metric", ())
    modules = list(module.modules())
    buffers = [(inner, dict(inner._buffers)) for inner in modules if inner._buffers]
    metrics = [(inner, dict(_states(inner))) for inner in modules if isinstance(inner, metric)]
    for inner, own in buffers:
        inner._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in own.items()})
    try:
        yield
    finally:
        for inner, own in buffers:
            inner._buffers.update(own)
        for inner, states in metrics:
            vars(inner).update(states)


@contextmanager
def unchanged_attributes(module: nn.Module) -> Iterator[None]:
    """Let a module run once more without a change of its public attributes, such as lists of the outputs of steps."""
    attributes = [(inner, _public(inner)) for inner in module.modules()]
    containers = [v for _, own in attributes for v in own.values() if isinstance(v, (list, dict, set, deque))]
    copies = [copy(container) for container in containers]
    try:
        yield
    finally:
        for inner, own in attributes:
            for name in _public(inner).keys() - own.keys():
                del vars(inner)[name]
            vars(inner).update(own)
        for container, values in zip(containers, copies):
            container.clear()
            container.extend(values) if isinstance(container, (list, deque)) else container.update(values)


def _public(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


class Muted:
    """Lets a module log nothing for a while."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.patches = [Patch(self.module, name, lambda *_, **__: None) for name in ("log", "log_dict")]

    def __exit__(self, *_: object) -> None:
        for patch in self.patches:
            patch.remove()


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often each tensor was changed in place."""
    return [tensor._version for tensor in tensors]


def loss_in(output: Any) -> Tensor | None:
    """The loss in the output of a training step; None if there is none."""
    return output.get("loss") if isinstance(output, Mapping) else output


def with_loss(output: Any, loss: Tensor) -> Any:
    """The output of a training step with another loss."""
    return {**output, "loss": loss} if isinstance(output, Mapping) else loss


def with_gradient_of(value: Tensor, loss: Tensor) -> Tensor:
    """The value of one loss with the gradient of another."""
    joined: Tensor = _GradientOf.apply(loss, value.detach())
    return joined


class _GradientOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
