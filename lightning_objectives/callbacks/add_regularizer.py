"""Adds a regularizer to the loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._step.added import AddedTerm, Strength
from lightning_objectives._step.chunks import by_rows
from lightning_objectives._step.step import Step
from lightning_objectives.kinds import Regularizer

_OF_ROWS = frozenset({"logits", "reference_logits", "target"})
"""Signals with a row for each comparison of the criterion."""


@dataclass(eq=False)
class AddRegularizer(AddedTerm):
    """Adds ``strength`` times a term to the loss that the model's step returns, and logs it as ``train/<name>``.

    Args:
        regularizer: the method, from any signals to a scalar, or to (N,) values, which the callback averages. The mean
            leaves out the rows whose target the model's criterion ignores, such as padding.
        strength: the factor of the term; at 0 nothing changes. A function gets the part of the training that is done,
            in [0, 1], and returns the factor. None takes the method's ``default_strength``: the paper's, or 1 if the
            paper sets none or the method is a function.

    Example:
        >>> from lightning_objectives.regularizers import SpectralDecoupling
        >>> AddRegularizer(SpectralDecoupling(), strength=0.1, start_epoch=2).regularizer
        SpectralDecoupling()
    """

    kind = Regularizer
    example: ClassVar = {"strength": 1.0}  # A few steps in bf16 would round a paper's 1e-4 away.
    zero: ClassVar = {"strength": 0.0}

    regularizer: nn.Module | Callable[..., Tensor]
    strength: Strength | None = None

    def methods(self) -> list[Any]:
        """The regularizer."""
        return [self.regularizer]

    @property
    def strength_setting(self) -> Strength:
        """The factor of the term, yours or the method's."""
        if self.strength is not None:
            return self.strength
        return type(self.regularizer).default_strength if isinstance(self.regularizer, Regularizer) else 1.0

    def term(self, step: Step) -> Tensor:
        """Compute the term of this step."""
        rows = self.arguments(step, _OF_ROWS.intersection(self.signals))
        others = self.arguments(step, set(self.signals) - rows.keys())
        value = self._mean(by_rows(self.regularizer, rows, others), step)
        self.learn(step, rows | others)
        step.log_term(self, value)
        return self.strength_at(step.trainer.global_step) * value

    def _mean(self, values: Tensor, step: Step) -> Tensor:
        valid = step.call.counted if step.call is not None and not _OF_ROWS.isdisjoint(self.signals) else None
        if valid is None or values.shape != (valid.numel(),):
            return values.mean()
        counts = valid.flatten()
        return torch.where(counts, values, 0.0).sum() / counts.sum().clamp_min(1)
