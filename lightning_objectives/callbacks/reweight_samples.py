"""Weights the samples of a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.calls import Call
from lightning_objectives._step.named import SHOWN
from lightning_objectives._step.plan import Plan
from lightning_objectives._step.rows import COUNTED, Unit, fold
from lightning_objectives._step.step import Step
from lightning_objectives._trainer.ranks import gather_rows
from lightning_objectives.kinds import Weighting
from lightning_objectives.signals import BY_ROW

_ONE_ROW = (
    "ReweightSamples got a micro-batch of one {unit} over all ranks. Its weight is 1 whatever its loss, so this batch "
    "trains as it does without ReweightSamples. Use a larger batch_size (accumulate_grad_batches does not help: each "
    "micro-batch is weighted by itself), or drop_last=True if only the last batch is this short."
)


@dataclass(eq=False)
class ReweightSamples(StepCallback):
    r"""Weights the losses of the samples, and reduces them as the model's criterion does.

    The callback gathers the signals from all ranks and weights their joined micro-batch, so that two processes compute
    the same weights as one. It logs under ``train/``, in the steps that Lightning logs: ``weighted_loss``,
    ``unweighted_loss``, ``effective_sample_size`` (:math:`(\sum w)^2 / \sum w^2`) and ``max_weight``. A single sample
    has the weight 1, whatever its loss: the callback warns once in a fit if a micro-batch of all ranks holds only one.

    If your code reduces the losses itself, the two losses are what it makes of them, with the weights and without.

    Several of these callbacks multiply their weights. Each method sees the unweighted losses, and the product is scaled
    so that its mean is the product of their means: 1 for methods that keep the mean 1.

    On a GPU a step waits for the device in three cases. Targets are ignored, or your code reduces the losses itself: a
    method sees only the rows that count, and the device alone knows how many these are. The criterion is named: a named
    criterion shows only by its gradients what it makes of its rows, in each batch anew. There are several processes:
    the ranks may have different numbers of rows.

    Args:
        weighting: the method, ``losses (N,) -> weights (N,)`` with mean 1.
        unit: ``"sample"`` gives each sample one weight, by the mean loss of its elements (tokens, pixels) that count;
            ``"element"`` weights each element on its own.
    """

    kind = Weighting
    place = "weighting"
    draws_by_rank = False  # The method sees the rows of all ranks.
    waits: ClassVar = {
        "ignored_targets_on_a_gpu": {"_kept": COUNTED},
        "unreduced_losses_on_a_gpu": {"_kept": COUNTED},
        "a_named_criterion_on_a_gpu": {"valid": SHOWN},
        "two_gpus": {"gather_rows": "the ranks may have different numbers of rows"},
    }

    weighting: nn.Module | Callable[..., Tensor]
    unit: Unit = "sample"

    _warned = False
    """Whether this fit has warned of a batch of one sample."""

    def methods(self) -> list[Any]:
        """The weighting."""
        return [self.weighting]

    def __post_init__(self) -> None:
        if self.unit not in ("sample", "element"):
            raise ValueError(f"unit={self.unit!r} must be 'sample' or 'element'.")

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the module back as it was; the next fit warns anew."""
        self._warned = False
        super().release(trainer, pl_module)

    @property
    def needs_samples(self) -> bool:
        """Whether it weights samples, and not elements."""
        return self.unit == "sample"

    def build(self, plan: Plan, head: nn.Module | None) -> None:
        """Refuse another weighting of another unit.

        Raises:
            ValueError: with both.
        """
        for other in plan.members:
            if isinstance(other, ReweightSamples) and other.unit != self.unit:
                raise ValueError(
                    f"ReweightSamples({self.weighting}) has unit={self.unit!r}, and ReweightSamples({other.weighting}) "
                    f"has unit={other.unit!r}, so their weights cannot be multiplied. Give both the same unit."
                )

    def weigh(self, call: Call, elements: Tensor, valid: Tensor | None, step: Step) -> Tensor:
        """Compute the weights of a call's elements, in their shape.

        Raises:
            ValueError: the method does not return one weight for each row.
        """
        samples = step.samples(call, elements) if self.unit == "sample" else None
        rows = fold(elements, valid, samples)
        asked = dict.fromkeys((*self.signals, *(("index",) if self.remembers else ())))
        local = {name: step.row(name, rows) for name in asked if name in BY_ROW}
        (losses, *gathered), own = gather_rows([rows.losses, *local.values()])
        if len(losses) == 1 and not self._warned:
            self._warned = True
            rank_zero_warn(_ONE_ROW.format(unit=self.unit))
        signals = dict(zip(local, gathered))
        for name in set(self.signals) - BY_ROW - {"memory"}:
            signals[name] = self.signal(name, step)
        if self.remembers:
            signals["memory"] = self.memory_in(step).of(signals["index"])
        with torch.no_grad():
            weights = self.weighting(**{name: signals[name] for name in self.signals})
        self.learn(step, signals, of_all_ranks=True)
        if weights.shape != losses.shape:
            raise ValueError(
                f"{self.weighting} gave weights of shape {tuple(weights.shape)} for {len(losses)} losses. It must "
                "return one weight for each loss."
            )
        weights = weights.to(torch.promote_types(rows.losses.dtype, torch.float32))
        weights = step.weights = weights if step.weights is None else _product(step.weights, weights)
        spread = rows.spread(weights[own])
        if step.logs and len(weights):
            with torch.no_grad():
                if call.is_reduced:  # If not, the step knows what your code makes of the losses.
                    ones = torch.ones_like(spread)
                    step.logged |= {"weighted_loss": call.weighted(spread), "unweighted_loss": call.weighted(ones)}
                step.logged |= {
                    "effective_sample_size": weights.sum().square() / weights.square().sum(),
                    "max_weight": weights.max(),
                }
        return spread


def _product(first: Tensor, second: Tensor) -> Tensor:
    """The product of two weights of each row, with the product of their means as its mean."""
    product = first * second
    mean = product.mean()
    return product * torch.where(mean > 0, first.mean() * second.mean() / mean, 1)
