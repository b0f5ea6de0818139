"""The network's head taken by a method of the kind `Head`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.pipeline import Pipeline
from lightning_objectives.kinds import Head


@dataclass(eq=False)
class WrapHead(StepCallback):
    """Runs the head as M stacks in training, and makes the loss the mean of the M losses.

    The user's code sees the mean of the stacks as the head's output. What it does to it on the way to the criterion is
    repeated on each stack: casts, shapes, selections, a temperature, a link function; anything else is refused by name.
    Validation, testing and prediction are the plain model's. No gradient passes through that mean: backward hooks of
    the head itself are not called, those of its parameters and of all layers before it are.

    Args:
        wrapper: the method, ``(features, head) -> (M, N, ...)``.
    """

    kind = Head
    place = "head"
    draws = True
    refuses: ClassVar = {
        "fsdp2": "the loss goes through the stacks, past the output by whose gradient the head's weights are gathered; "
        "use DDPStrategy",
    }

    wrapper: nn.Module | Callable[..., Tensor]

    def methods(self) -> list[Any]:
        """The one method."""
        return [self.wrapper]

    def stacks(self, pipeline: Pipeline) -> Tensor:
        """The head's stacks for the features of this step."""
        stacks: Tensor = self.wrapper(**{name: pipeline.signals.get(name) for name in self.signals})
        return stacks
