"""Computes several stacks of logits in place of the head's one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives.kinds import Head


@dataclass(eq=False)
class WrapHead(StepCallback):
    """Runs the head as M stacks in training, and makes the loss the mean of the M losses.

    Your code sees the mean of the stacks as the head's output. What your code does to that mean on the way to the
    criterion, the callback repeats on each stack: casts, shapes, selections, a temperature, a link function. Any other
    operation is an error that names it. Validation, testing and prediction are those of the plain model. No gradient
    passes through the mean, so torch does not call backward hooks of the head itself; it calls those of the head's
    parameters and of all layers before the head.

    Args:
        wrapper: the method, ``(features, head) -> (M, N, ...)``.
    """

    kind = Head
    place = "head"
    draws = True
    refuses: ClassVar = {
        "fsdp2": "the loss bypasses the head's output, whose gradient makes FSDP2 gather the head's weights; use "
        "DDPStrategy",
    }

    wrapper: nn.Module | Callable[..., Tensor]

    def methods(self) -> list[Any]:
        """The wrapper."""
        return [self.wrapper]

    def stacks(self, signals: Mapping[str, Any]) -> Tensor:
        """Compute the head's stacks for the features of this step."""
        stacks: Tensor = self.wrapper(**{name: signals[name] for name in self.signals})
        return stacks
