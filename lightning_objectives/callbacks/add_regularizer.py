"""Adds a regularizer to the loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.step import Step
from lightning_objectives.kinds import Regularizer

_OF_ROWS = frozenset({"logits", "target"})
"""Signals with a row for each comparison of the criterion."""


@dataclass(eq=False)
class AddRegularizer(StepCallback):
    """Adds ``strength`` times a term to the loss that the model's step returns, and logs it as ``train/<name>``.

    Args:
        regularizer: the method, from any signals to a scalar, or to (N,) values, which the callback averages. The mean
            leaves out the rows whose target the model's criterion ignores, such as padding.
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

    def term(self, step: Step) -> Tensor:
        """Compute the term of this step."""
        value = self._mean(self.regularizer(**self.arguments(step, self.signals)), step)
        step.log_term(self, value)
        return self.factor * value

    def _mean(self, values: Tensor, step: Step) -> Tensor:
        valid = step.call.counted if step.call is not None and not _OF_ROWS.isdisjoint(self.signals) else None
        if valid is None or values.shape != (valid.numel(),):
            return values.mean()
        counts = valid.flatten()
        return torch.where(counts, values, 0.0).sum() / counts.sum().clamp_min(1)
