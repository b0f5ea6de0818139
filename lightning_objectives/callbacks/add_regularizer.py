"""Adds a regularizer to the loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.pipeline import Pipeline
from lightning_objectives.kinds import Regularizer


@dataclass(eq=False)
class AddRegularizer(StepCallback):
    """Adds ``strength`` times a term to the loss that the model's step returns, and logs it as ``train/<name>``.

    Args:
        regularizer: the method, from any signals to a scalar, or to (N,) values, which the callback averages.
        strength: the factor of the term; at 0 nothing changes. None takes the method's
            ``default_strength``: the paper's, or 1 if the paper sets none or the method is a function.
    """

    kind = Regularizer
    place = "term"
    example: ClassVar = {"strength": 1.0}  # A few steps in bf16 would round a paper's 1e-4 away.
    zero: ClassVar = {"strength": 0.0}

    regularizer: nn.Module | Callable[..., Tensor]
    strength: float | None = None

    def methods(self) -> list[Any]:
        """The regularizer."""
        return [self.regularizer]

    @property
    def factor(self) -> float:
        """The factor of the term, yours or the method's."""
        if self.strength is not None:
            return self.strength
        return type(self.regularizer).default_strength if isinstance(self.regularizer, Regularizer) else 1.0

    def active(self, step: int) -> bool:
        """False at strength 0."""
        return self.factor != 0 and super().active(step)

    def term(self, pipeline: Pipeline) -> Tensor:
        """Compute the term of this step."""
        value: Tensor = self.regularizer(**{name: pipeline.signals.get(name) for name in self.signals})
        value = value.mean()
        pipeline.log_term(self, value)
        return self.factor * value
