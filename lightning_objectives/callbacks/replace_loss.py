"""Replaces the model's criterion by another loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.criterion import Call
from lightning_objectives._step.pipeline import Pipeline
from lightning_objectives.kinds import Loss


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

    def rewrite(self, call: Call, pipeline: Pipeline) -> Call:
        """Replace the criterion of a call by the loss."""
        others = {name: pipeline.signals.get(name) for name in self.signals if name not in ("logits", "target")}
        options = {name: value for name, value in call.options.items() if name == "ignore_index"}

        def function(input: Tensor, target: Tensor, *, reduction: str, **_: Any) -> Tensor:
            rows = {"logits": call.rows(input), "target": target.flatten() if call.indexed else call.rows(target)}
            valid = replace(call, input=input, target=target).valid
            keep = None if valid is None else valid.flatten()
            if keep is not None:
                rows = {name: value[keep] for name, value in rows.items()}
            signals: dict[str, Any] = {name: value for name, value in rows.items() if name in self.signals}
            losses: Tensor = self.loss(**signals, **others)
            shape = target.shape if call.indexed else (input.shape[0], *input.shape[2:])
            if keep is None:
                return losses.reshape(shape)
            return losses.new_zeros(len(keep)).masked_scatter(keep, losses).reshape(shape)

        return replace(call, function=function, options=options, by_class=True)
