"""Replaces the model's criterion by another loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.calls import Call
from lightning_objectives._step.step import Step
from lightning_objectives.kinds import Loss, Problem


@dataclass(eq=False)
class ReplaceLoss(StepCallback):
    """Replaces the model's criterion by another loss on the same logits and targets.

    Targets that the model's criterion ignores (``ignore_index``) stay ignored. Its class weights and its label
    smoothing no longer apply. ``reduction="mean"`` is the mean over the targets that count.

    Args:
        loss: the method, ``(logits, target) -> (N,)``.
    """

    kind = Loss
    place = "loss"

    loss: nn.Module | Callable[..., Tensor]

    def methods(self) -> list[Any]:
        """The loss."""
        return [self.loss]

    def rewrite(self, call: Call, step: Step) -> Call:
        """Replace the criterion of a call by the loss."""
        others = {name: step.get(name) for name in self.signals if name not in ("logits", "target")}

        def losses_of(call: Call) -> Tensor:
            """The losses of the rows that count, 0 for the others."""
            rows = {"logits": call.logits, "target": call.targets}
            keep = None if call.valid is None else call.valid.flatten()
            if keep is not None:
                rows = {name: value[keep] for name, value in rows.items()}
            signals = {name: self.adapted(name, value, call) for name, value in rows.items() if name in self.signals}
            losses: Tensor = self.loss(**signals, **others)
            return losses if keep is None else losses.new_zeros(len(keep)).masked_scatter(keep, losses)

        return Replaced(call, losses_of)


class Replaced(Call):
    """A call of a criterion with other losses in place of its own.

    Args:
        call: the user's call.
        losses_of: computes the losses (rows,) of what a call compares.
    """

    by_class = True

    def __init__(self, call: Call, losses_of: Callable[[Call], Tensor]) -> None:
        self.call, self.losses_of = call, losses_of
        self.name, self.input, self.reduction, self.probabilities = (
            call.name,
            call.input,
            call.reduction,
            call.probabilities,
        )
        self.class_dim = call.class_dim if call.by_class else 1
        self.by_class = self.input.dim() > 1  # Elements become rows: a loss for all columns of a row.

    @property
    def target(self) -> Tensor:  # type: ignore[override]  # an attribute that is computed
        """The target of the user's call."""
        return self.call.target

    @property
    def problem(self) -> Problem | None:
        """What kind of problem the criterion belongs to."""
        return self.call.problem

    @property
    def indexed(self) -> bool:
        """Whether the target holds class indices."""
        return self.call.indexed

    @property
    def logits(self) -> Tensor:
        """(rows, C) logits."""
        return self.call.logits

    @property
    def targets(self) -> Tensor:
        """(rows,) class indices, or (rows, C) numbers."""
        return self.call.targets

    def value(self) -> Tensor:
        """The losses, reduced as the user's criterion reduces its own."""
        elements = self.elements
        if not self.is_reduced:
            return elements
        return elements.sum() / self.divisor if self.divides else elements.sum()

    @cached_property
    def elements(self) -> Tensor:
        """The unreduced losses, one for each row of the input."""
        shape = list(self.input.shape)
        if len(shape) > 1:
            del shape[self.class_dim or 0]
        return self.losses_of(self.call).reshape(shape)

    @property
    def valid(self) -> Tensor | None:
        """Which rows count."""
        return self.call.valid

    @property
    def counted(self) -> Tensor | None:
        """Which targets are not to be ignored."""
        return self.call.counted

    @property
    def parts(self) -> Tensor | None:
        """What each row adds to the divisor of a mean: 1 if it counts."""
        return self.valid

    @property
    def divisor(self) -> Tensor | int:
        """What a mean divides by."""
        return len(self.input) if self.reduction == "batchmean" else super().divisor

    def on(self, substitute: Callable[[Tensor], Tensor]) -> "Replaced":
        """The same call with other tensors."""
        return Replaced(self.call.on(substitute), self.losses_of)

    def with_targets_of(self, rows: Tensor) -> "Replaced":
        """The same call with the targets of other rows."""
        return Replaced(self.call.with_targets_of(rows), self.losses_of)
