"""Holds the predictions and the targets that an evaluation step compares, and says what they are."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_objectives._step.calls import Call
from lightning_objectives.kinds import Problem

_IGNORED = -100
"""The class that metrics do not count."""
READ = "float targets of two classes show by their values alone whether they are classes"
"""Why an evaluation step of two classes waits for the device."""
_LOG_OF_ZERO = -100.0
"""What torch's binary_cross_entropy takes for log 0."""


@dataclass(frozen=True, eq=False)
class Compared:
    """Predictions and targets of one evaluation step."""

    input: Tensor
    """What the criterion got, or the head returned."""
    target: Tensor
    problem: Problem | None
    """What kind of problem the criterion belongs to; None if that is unknown."""
    source: str
    """What compares them, for messages."""
    probabilities: bool = False
    """Whether the input holds the probabilities of the second class."""
    logarithms: bool = False
    """Whether the input holds the logarithms of predicted rates."""
    ignore_index: int | None = None
    """The class that marks what does not count."""

    @classmethod
    def of_call(cls, call: Call) -> "Compared":
        """Read a criterion's call."""
        options = getattr(call, "options", {})
        target = call.target.exp() if options.get("log_target") else call.target
        return cls(
            call.input.detach() if call.class_dim != -1 else call.input.detach().movedim(-1, 1),
            target,
            "classes" if call.problem == "distribution" else call.problem,
            f"{call.name} of {tuple(call.input.shape)}",
            call.probabilities,
            call.name == "poisson_nll_loss" and options.get("log_input", True),
            options.get("ignore_index", -100) if call.indexed else None,
        )

    @classmethod
    def of_head(cls, output: Tensor, target: Tensor) -> "Compared":
        """Read a step without a criterion: whole numbers as targets are classes, others may be anything."""
        problem: Problem | None = None
        if not target.is_floating_point():
            problem = "binary" if output.dim() < 2 or output.shape[1] == 1 else "classes"
        return cls(output.detach(), target, problem, "no criterion", ignore_index=-100)

    def with_input(self, input: Tensor) -> "Compared":
        """The same comparison with other predictions."""
        return replace(self, input=input)

    @property
    def columns(self) -> int:
        """The number of columns of the predictions."""
        return self.input.shape[1] if self.input.dim() > 1 else 1

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Predictions and targets as this package's metrics take them: logits for classes, numbers for a regression.

        A class that does not count is -100, which these metrics leave out without waiting for the device.
        """
        preds, target = self.input, self.target
        if self.probabilities and self.problem == "binary":
            preds = preds[:, None] if preds.dim() == 1 else preds
            target = target[:, None] if target.dim() == 1 else target
            no, yes = (1 - preds).log().clamp_min(_LOG_OF_ZERO), preds.log().clamp_min(_LOG_OF_ZERO)
            # Log-probabilities are logits: the softmax gives the probabilities back.
            return torch.cat([no, yes], 1), self._two_columns(target)
        if self.problem == "binary":
            preds = preds[:, None] if preds.dim() == 1 else preds
            target = target[:, None] if target.dim() == 1 else target
            return torch.cat([torch.zeros_like(preds), preds], 1), self._two_columns(target)
        if self.ignore_index is None or target.is_floating_point() or self.logarithms:
            return self.plain
        if self.ignore_index != _IGNORED:  # A -100 of the user's own stays a number that is no class.
            classes = target.long().masked_fill(target == _IGNORED, _IGNORED - 1)
            target = classes.masked_fill(target == self.ignore_index, _IGNORED)
        return preds, target

    @property
    def plain(self) -> tuple[Tensor, Tensor]:
        """Predictions and targets that count, in the form in which the user's criterion gets them."""
        preds, target = self.input, self.target
        if self.logarithms:
            preds = preds.exp()
        if self.ignore_index is not None and not target.is_floating_point():
            kept = target != self.ignore_index
            if not bool(kept.all()):
                rows = preds.movedim(1, -1) if preds.dim() > 1 else preds
                return rows[kept], target[kept]
        return preds, target

    @staticmethod
    def _two_columns(target: Tensor) -> Tensor:
        """Classes if the targets are 0 and 1, else the probabilities of both classes."""
        if not target.is_floating_point():
            return target.squeeze(1)
        whole = bool(((target == 0) | (target == 1)).all())
        return target.squeeze(1).long() if whole else torch.cat([1 - target, target], 1)
