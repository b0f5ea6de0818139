"""Answers on the host what is asked of a batch on the device, so that the step does not wait for the device."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_objectives._step.calls import Call, TorchCall
from lightning_objectives._trainer.patch import Patch


class _Copy(NamedTuple):
    """A tensor on the device, and the one on the host that it was copied from."""

    device: Tensor
    version: int
    host: Tensor
    host_version: int


class HostCopies:
    """Remembers which whole numbers of the latest batch Lightning has copied to the device, and from where.

    A criterion ignores targets of one class index. Whether there are any decides which rows a method sees. On the
    device that answer costs a wait in each step; on the host, where the targets came from, it costs none.

    Args:
        trainer: its strategy moves the batches.
    """

    def __init__(self, trainer: Any) -> None:
        self._copies: list[_Copy] = []
        self.remove = Patch(trainer.strategy, "batch_to_device", self._moved).remove

    def _moved(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._copies.clear()
        with _Moves(self._copies):
            return inner(*args, **kwargs)

    def settled(self, call: Call) -> Call:
        """The call, without the question which targets count if the host knows that all of them do."""
        if not isinstance(call, TorchCall) or not call.indexed:
            return call
        ignored = call.options.get("ignore_index")
        known = ignored is not None and self.lacks(call.target, ignored)
        return replace(call, counts_all=True) if known else call

    def lacks(self, tensor: Tensor, number: int) -> bool:
        """Whether the host knows that no entry of a tensor is this number; False if it does not know.

        A view holds no other entries than the tensor that was copied, unless someone has written to it since.
        """
        for copy in self._copies:
            is_view = tensor.dtype == copy.device.dtype and _storage(tensor) == _storage(copy.device)
            if is_view and copy.device._version == copy.version and copy.host._version == copy.host_version:
                return not bool((copy.host == number).any())
        return False


class _Moves(TorchFunctionMode):
    """Notes what is moved from the host to a device."""

    def __init__(self, copies: list[_Copy]) -> None:
        super().__init__()
        self._copies = copies

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.to, Tensor.cuda) and isinstance(result, Tensor):
            source = args[0]
            whole = not (source.is_floating_point() or source.is_complex()) and result.dtype == source.dtype
            moved = source.device.type == "cpu" != result.device.type
            if whole and moved and not (source.is_inference() or result.is_inference()):
                self._copies.append(_Copy(result, result._version, source, source._version))
        return result


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
