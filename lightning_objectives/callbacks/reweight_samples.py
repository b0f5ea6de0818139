"""Weights the samples of a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.criterion import Call
from lightning_objectives._step.pipeline import Pipeline
from lightning_objectives._step.rows import Unit, fold
from lightning_objectives._trainer.ranks import gather_rows
from lightning_objectives.kinds import Weighting
from lightning_objectives.signals import BY_ROW


@dataclass(eq=False)
class ReweightSamples(StepCallback):
    r"""Weights the losses of the samples, and reduces them as the model's criterion does.

    The callback gathers the signals from all ranks and weights their joined micro-batch, so that two processes compute
    the same weights as one. It logs under ``train/``, in the steps that Lightning logs: ``weighted_loss``,
    ``unweighted_loss``, ``effective_sample_size`` (:math:`(\sum w)^2 / \sum w^2`) and ``max_weight``.

    Args:
        weighting: the method, ``losses (N,) -> weights (N,)`` with mean 1.
        unit: ``"sample"`` gives each sample one weight, by the mean loss of its elements (tokens, pixels) that count;
            ``"element"`` weights each element on its own.
    """

    kind = Weighting
    place = "weighting"

    weighting: nn.Module | Callable[..., Tensor]
    unit: Unit = "sample"

    def methods(self) -> list[Any]:
        """The weighting."""
        return [self.weighting]

    def __post_init__(self) -> None:
        if self.unit not in ("sample", "element"):
            raise ValueError(f"unit={self.unit!r} must be 'sample' or 'element'.")

    def weigh(self, call: Call, elements: Tensor, pipeline: Pipeline) -> Tensor:
        """Compute the weights of a call's elements, in their shape.

        Raises:
            ValueError: the method does not return one weight for each row.
        """
        rows = fold(call, elements, unit=self.unit, batch_size=pipeline.batch_size)
        local = {name: pipeline.signals.row(name, rows) for name in self.signals if name in BY_ROW}
        (losses, *gathered), own = gather_rows([rows.losses, *local.values()])
        signals = {name: pipeline.signals.get(name) for name in self.signals if name not in BY_ROW}
        with torch.no_grad():
            weights = self.weighting(**signals, **dict(zip(local, gathered)))
        if weights.shape != losses.shape:
            raise ValueError(
                f"{self.weighting} gave weights of shape {tuple(weights.shape)} for {len(losses)} losses. It must "
                "return one weight for each loss."
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
