"""Combines the terms of the loss by their gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.gradients import WHOLE_GRADIENTS, Gradients, weighted_sum
from lightning_objectives._step.plan import Plan
from lightning_objectives._step.step import Step
from lightning_objectives.kinds import Combination


@dataclass(eq=False)
class CombineTerms(StepCallback):
    """Weights the model's own loss and the terms that other callbacks add, by their gradients.

    The first gradient is that of the model's own loss. The others are those of the terms, in the order of their names.
    All are means over the ranks, so that each rank computes the same weights. Each gradient costs one backward pass
    through the network. Gradient scaling, clipping and accumulation see the weighted sum as the gradient of any other
    loss. The weights are logged as ``train/weight_0``, ``train/weight_1``, ...

    Args:
        combination: the method, ``gradients (K, P) -> weights (K,)``.

    Raises:
        ValueError: at the start of the training, if no callback adds a term.
    """

    kind = Combination
    place = "combination"
    beside = ("AddRegularizer",)
    draws_by_rank = False  # The gradients are means over the ranks.
    refuses: ClassVar = {"fsdp2": WHOLE_GRADIENTS}

    combination: nn.Module | Callable[..., Tensor]

    def methods(self) -> list[Any]:
        """The combination."""
        return [self.combination]

    def build(self, plan: Plan, head: nn.Module | None) -> None:
        """Refuse a training without a term.

        Raises:
            ValueError: no callback of the training adds a term.
        """
        if not any(getattr(callback, "place", "") == "term" for callback in plan.trainer.callbacks):
            raise ValueError(
                f"CombineTerms({self.combination}) has nothing to combine: no callback of this training adds a term to "
                "the loss. Add one, such as AddRegularizer or Distill, or remove CombineTerms."
            )

    def combine(self, terms: Sequence[Tensor], step: Step) -> Tensor:
        """Compute the weighted sum of the terms.

        Raises:
            ValueError: the method does not return one weight for each term.
        """
        signals = {name: self.signal(name, step) for name in self.signals if name != "gradients"}
        gradients = Gradients(terms, step) if "gradients" in self.signals else None
        if gradients is not None:
            signals["gradients"] = gradients.rows
        weights: Tensor = self.combination(**signals)
        if weights.shape != (len(terms),):
            raise ValueError(
                f"{self.combination} gave weights of shape {tuple(weights.shape)} for {len(terms)} terms of the loss. "
                "It must return one weight for each term."
            )
        step.logged |= {f"weight_{i}": weight for i, weight in enumerate(weights.detach())}
        return weighted_sum(terms, weights) if gradients is None else gradients.weighted(weights)
