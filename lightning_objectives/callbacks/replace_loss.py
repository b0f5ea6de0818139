"""Replaces the model's criterion by another loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.calls import MEANS, Call, Derived
from lightning_objectives._step.chunks import by_rows
from lightning_objectives._step.named import SHOWN
from lightning_objectives._step.rows import COUNTED
from lightning_objectives._step.step import Step
from lightning_objectives.kinds import Loss
from lightning_objectives.signals import BY_ROW


@dataclass(eq=False)
class ReplaceLoss(StepCallback):
    """Replaces the model's criterion by another loss on the same logits and targets.

    Targets that the model's criterion ignores (``ignore_index``) stay ignored. Its class weights and its label
    smoothing no longer apply. ``reduction="mean"`` is the mean over the targets that count.

    On a GPU a step waits for the device in two cases. Targets are ignored: a method sees only the rows that count, and
    the device alone knows how many these are. The criterion is named: a named criterion shows only by its gradients
    what it makes of its rows, in each batch anew.

    Args:
        loss: the method, ``(logits, target) -> (N,)``.
    """

    kind = Loss
    place = "loss"
    waits: ClassVar = {
        "ignored_targets_on_a_gpu": {"losses_of": COUNTED},
        "a_named_criterion_on_a_gpu": {"valid": SHOWN, "reduction": SHOWN},
    }

    loss: nn.Module | Callable[..., Tensor]

    def methods(self) -> list[Any]:
        """The loss."""
        return [self.loss]

    def rewrite(self, call: Call, step: Step) -> Call:
        """Replace the criterion of a call by the loss."""
        if self.remembers:
            raise ValueError(
                f"{self.loss} remembers each sample, which a replaced loss cannot. Let it be a regularizer, which adds "
                "its part to the model's own loss."
            )
        asked = {name: self.signal(name, step) for name in self.signals if name not in ("logits", "target")}

        def losses_of(call: Call) -> Tensor:
            """The losses of the rows that count, 0 for the others."""
            own = {"logits": call.logits, "target": call.targets}
            kept = None if call.valid is None else call.valid.flatten().nonzero().squeeze(1)
            own |= {name: value for name, value in asked.items() if name in BY_ROW and len(value) == len(own["logits"])}
            rows = {name: self.adapted(name, value, call) for name, value in own.items() if name in self.signals}
            losses = by_rows(self.loss, rows, {n: value for n, value in asked.items() if n not in rows}, kept)
            if "logits" not in self.signals:  # DDP waits for a gradient of each parameter that made them.
                losses = losses + torch.nan_to_num(own["logits"] * 0).sum()
            return losses if kept is None else losses.new_zeros(len(own["logits"])).index_copy(0, kept, losses)

        return Replaced(call, losses_of)


class Replaced(Derived):
    """A call of a criterion with other losses in place of its own.

    Args:
        call: the user's call.
        losses_of: computes the losses (rows,) of what a call compares.
    """

    def __init__(self, call: Call, losses_of: Callable[[Call], Tensor]) -> None:
        super().__init__(call)
        self.losses_of = losses_of
        self._reduction = call.reduction  # It must be known, also of a named criterion.

    @property
    def by_class(self) -> bool:  # type: ignore[override]  # an attribute that is computed
        """Whether there are several columns: all of them have one loss."""
        return self.input.dim() > 1  # type: ignore[no-any-return]  # of the first call

    @property
    def class_dim(self) -> int:  # type: ignore[override]
        """The dimension of the columns."""
        return self.first.class_dim or 1 if self.first.by_class else 1

    @property
    def divides(self) -> bool:
        """Whether the mean of the losses is taken."""
        return self._reduction in MEANS

    def value(self) -> Tensor:
        """The losses, reduced as the user's criterion reduces its own."""
        if not self.is_reduced:
            return self.elements
        return self.elements.sum() / self.divisor if self.divides else self.elements.sum()

    @cached_property
    def elements(self) -> Tensor:
        """The unreduced losses, one for each row of the input."""
        shape = list(self.input.shape)
        if len(shape) > 1:
            del shape[self.class_dim]
        return self.losses_of(self.first).reshape(shape)

    @property
    def parts(self) -> Tensor | None:
        """What each row adds to the divisor of a mean: 1 if it counts."""
        return self.first.valid

    @property
    def divisor(self) -> Tensor | int:
        """What a mean divides by."""
        if self._reduction == "batchmean":
            return len(self.input)
        return self.elements.numel() if self.parts is None else self.parts.sum()

    def on(self, substitute: Callable[[Tensor], Tensor]) -> "Replaced":
        """The same call with other tensors."""
        return Replaced(self.first.on(substitute), self.losses_of)

    def with_targets_of(self, rows: Tensor) -> "Replaced":
        """The same call with the targets of other rows."""
        return Replaced(self.first.with_targets_of(rows), self.losses_of)
