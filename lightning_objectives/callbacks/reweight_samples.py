"""Samples weighted by a method of the kind `Weighting`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.criterion import Call
from lightning_objectives._step.pipeline import Pipeline
from lightning_objectives._step.rows import Unit, fold
from lightning_objectives._step.signals import ROWS
from lightning_objectives._trainer.ranks import gather_rows
from lightning_objectives.kinds import Weighting


@dataclass(eq=False)
class ReweightSamples(StepCallback):
    r"""Weights the losses of the samples; the reduction and its denominator stay the model's own.

    The weights are those of one micro-batch of all ranks: the signals are gathered first, so that two processes weight
    as one with the joined batch. Logged under ``train/``, in the steps that Lightning logs: ``weighted_loss``,
    ``unweighted_loss``, ``effective_sample_size`` (:math:`(\sum w)^2 / \sum w^2`) and ``max_weight``.

    Args:
        weighting: the method, ``losses (N,) -> weights (N,)`` with mean 1.
        unit: ``"sample"`` folds the elements of each sample (tokens, pixels) into one mean over those that count;
            ``"element"`` weights each on its own.
    """

    kind = Weighting
    place = "weighting"

    weighting: nn.Module | Callable[..., Tensor]
    unit: Unit = "sample"

    def methods(self) -> list[Any]:
        """The one method."""
        return [self.weighting]

    def __post_init__(self) -> None:
        if self.unit not in ("sample", "element"):
            raise ValueError(f"unit={self.unit!r} must be 'sample' or 'element'.")

    def weigh(self, call: Call, elements: Tensor, pipeline: Pipeline) -> Tensor:
        """The weights of a call's elements, in their shape."""
        rows = fold(call, elements, unit=self.unit, batch_size=pipeline.batch_size)
        local = {name: pipeline.signals.row(name, rows) for name in self.signals if name in ROWS}
        everyone, own = gather_rows([rows.losses, *local.values()])
        signals = {name: pipeline.signals.get(name) for name in self.signals if name not in ROWS}
        with torch.no_grad():
            weights = self.weighting(**signals, **dict(zip(local, everyone[1:])))
        if weights.shape != everyone[0].shape:
            raise ValueError(
                f"{self.weighting} gave weights of shape {tuple(weights.shape)} for {len(everyone[0])} losses."
            )
        weights = weights.to(torch.promote_types(rows.losses.dtype, torch.float32))
        spread = rows.spread(weights[own])
        if pipeline.logs:
            with torch.no_grad():
                pipeline.logged |= {
                    "weighted_loss": call.reduce(torch.where(spread == 0, 0.0, elements * spread)).mean(),
                    "unweighted_loss": call.reduce(elements).mean(),
                    "effective_sample_size": weights.sum().square() / weights.square().sum(),
                    "max_weight": weights.max(),
                }
        return spread
