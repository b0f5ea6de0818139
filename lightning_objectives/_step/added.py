"""The base class of the callbacks that add a term to the loss: how strongly, and when."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.plan import Plan
from lightning_objectives._trainer.progress import progress_of

Strength: TypeAlias = float | Callable[[float], float]
"""The factor of a term: a number, or a function from the part of the training that is done, in [0, 1]."""


@dataclass(eq=False, kw_only=True)
class AddedTerm(StepCallback):
    """Adds a term to the loss while it is due.

    Args:
        start_step: the number of optimizer steps after which the term begins.
        start_epoch: the number of completed epochs after which it begins, in place of ``start_step``.
        stop_step: the number of optimizer steps after which it ends; None for the end of the training.
        stop_epoch: the number of completed epochs after which it ends, in place of ``stop_step``.
        warmup_steps: over how many optimizer steps the factor grows to its value: k / ``warmup_steps`` of it in the
            k-th step from the start.

    Raises:
        ValueError: a setting below 0, a start or a stop in two units, a stop that is not after the start,
            ``warmup_steps`` after a ``start_epoch``; in the training, a factor that is no finite number.
    """

    place = "term"

    start_step: int | None = None
    start_epoch: int | None = None
    stop_step: int | None = None
    stop_epoch: int | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("start_step", "start_epoch", "stop_step", "stop_epoch", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}={value} must be >= 0.")
        for what in ("start", "stop"):
            steps, epochs = getattr(self, f"{what}_step"), getattr(self, f"{what}_epoch")
            if steps is not None and epochs is not None:
                raise ValueError(
                    f"{what}_step={steps} and {what}_epoch={epochs} say the same in two units. Use one of them."
                )
        for unit in ("step", "epoch"):
            start, stop = getattr(self, f"start_{unit}"), getattr(self, f"stop_{unit}")
            if stop is not None and stop <= (start or 0) and (start is not None or stop == 0):
                raise ValueError(f"stop_{unit}={stop} must be above start_{unit}={start or 0}, or nothing is added.")
        if self.warmup_steps and self.start_epoch is not None:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} counts from a step, so it needs start_step= in place of "
                f"start_epoch={self.start_epoch}."
            )

    @property
    def strength_setting(self) -> Strength:
        """The factor as the user or the method sets it."""
        raise NotImplementedError(f"{type(self).__name__} has no strength.")

    def strength_at(self, step: int) -> float:
        """The factor of the term in the step after so many optimizer steps; 0 if the term is not due.

        Raises:
            ValueError: it is no finite number.
        """
        strength = self.strength_setting
        if strength == 0 or not self._is_due(step):
            return 0.0
        if callable(strength):
            done = progress_of(Plan.trainer_of(self))
            value, strength = strength, float(strength(done))
            if not math.isfinite(strength):
                raise ValueError(f"{type(self).__name__}: {value} gives {strength} at {done}: not a finite factor.")
        if step - (self.start_step or 0) + 1 < self.warmup_steps:
            strength *= (step - (self.start_step or 0) + 1) / self.warmup_steps
        return strength

    def _is_due(self, step: int) -> bool:
        if (self.start_epoch, self.stop_epoch) != (None, None):
            epoch: Any = Plan.trainer_of(self).current_epoch
            if epoch < (self.start_epoch or 0) or (self.stop_epoch is not None and epoch >= self.stop_epoch):
                return False
        return step >= (self.start_step or 0) and (self.stop_step is None or step < self.stop_step)

    def active(self, step: int) -> bool:
        """Whether the term is due, with a factor other than 0."""
        return super().active(step) and self.strength_at(step) != 0
