"""Asks a teacher for its features on what an evaluation step gives its own network."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_objectives._step.batch import tensors_of
from lightning_objectives._step.capture import Capture, NetworkCall
from lightning_objectives._step.frozen import Frozen
from lightning_objectives._step.head import by_position


class ShownTeacher:
    """A trained network beside the user's, called as an evaluation step calls its own.

    Args:
        network: the trained network, which is changed in place.
        head: the path of its head; None to find it.
        call: how to call it, if the user says it.
    """

    def __init__(
        self, network: nn.Module, *, head: str | None = None, call: Callable[[nn.Module, Any], Any] | None = None
    ) -> None:
        self.frozen = Frozen(network, head=head, tap=True)
        self.head = head
        self.call = call

    def features(self, module: Any, batch: Any, calls: Sequence[NetworkCall]) -> Tensor:
        """The input of the teacher's head, one row for each sample, or for each position of a sample.

        Args:
            module: the user's module.
            batch: the batch of the step.
            calls: how the step called its network and the module.

        Raises:
            ValueError: it is unknown what the teacher should be given, or it fails.
        """
        frozen, how = self.frozen, self.call
        with Capture.closed():
            if how is not None:
                inputs = next(tensors_of(batch), None)
                answer = frozen.answer(lambda network: how(network, batch), inputs, module.dtype)
            else:
                call = self._own_call(module, batch, calls)
                answer = frozen(*call.args, dtype=module.dtype, **call.kwargs)
        if answer.features is None:
            raise ValueError(
                f"The teacher {type(frozen.network).__name__} did not call its head {self.head!r}. Name the module "
                "that turns its features into logits by teacher_head=."
            )
        return by_position(answer.features, frozen.head)

    def _own_call(self, module: Any, batch: Any, calls: Sequence[NetworkCall]) -> NetworkCall:
        """The call of the network, or of the whole module, which a teacher like the module takes first."""
        tensors = list(tensors_of(batch))
        alike = isinstance(self.frozen.network, type(module))
        for whole in (True, False) if alike else (False, True):
            own = [call for call in calls if (call.owner is module) == whole]
            if len(own) == 1 and _takes_inputs(own[0], tensors, whole=whole):
                return own[0]
        raise ValueError(
            f"It is unknown what the teacher should be given: the evaluation step of {type(module).__name__} does not "
            "call its network once, with the inputs of the batch. Say how to call the teacher: "
            "teacher_call=lambda teacher, batch: teacher(batch[0])."
        )


def _takes_inputs(call: NetworkCall, tensors: list[Tensor], *, whole: bool) -> bool:
    """Whether a call got the inputs of the batch, and not features that another part of the module computed.

    A part of the module must get a tensor of the batch itself: no gradient tells features from changed inputs here.
    """
    leaves = [leaf for value in (*call.args, *call.kwargs.values()) for leaf in tensors_of(value)]
    same = any(leaf is tensor for leaf in leaves for tensor in tensors)
    return same or (whole and any(leaf.shape == tensor.shape for leaf in leaves for tensor in tensors))
