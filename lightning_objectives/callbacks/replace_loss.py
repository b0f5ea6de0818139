"""The model's criterion replaced by a method of the kind `Loss`."""

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
    """Puts another loss in the place of the model's criterion, on the same logits and targets.

    What the model's criterion ignores (``ignore_index``) stays ignored; its class weights and label smoothing go with
    it. ``reduction="mean"`` is the mean over what counts.

    Args:
        loss: the method, ``(logits, target) -> (N,)``.
    """

    kind = Loss
    place = "loss"

    loss: nn.Module | Callable[..., Tensor]

    def methods(self) -> list[Any]:
        """The one method."""
        return [self.loss]

    def rewrite(self, call: Call, pipeline: Pipeline) -> Call:
        """The same call of the other loss."""
        others = {n: pipeline.signals.get(n) for n in self.signals if n not in ("logits", "target")}
        ignored = {k: v for k, v in call.options.items() if k == "ignore_index"}

        def function(input: Tensor, target: Tensor, *, reduction: str, **_: Any) -> Tensor:
            mine = replace(call, input=input, target=target)
            rows = {"logits": call.rows(input), "target": target.flatten() if call.indexed else call.rows(target)}
            keep = None if mine.valid is None else mine.valid.flatten()
            if keep is not None:
                rows = {name: value[keep] for name, value in rows.items()}
            asked: dict[str, Any] = {name: value for name, value in rows.items() if name in self.signals}
            losses: Tensor = self.loss(**asked, **others)
            shape = target.shape if call.indexed else (input.shape[0], *input.shape[2:])
            if keep is None:
                return losses.reshape(shape)
            return losses.new_zeros(len(keep)).masked_scatter(keep, losses).reshape(shape)

        return replace(call, function=function, options=ignored, by_class=True)
