"""The terms of the objective combined by a method of the kind `Combination`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.gradients import WHOLE_GRADIENTS, Gradients, weighted_sum
from lightning_objectives._step.pipeline import Pipeline
from lightning_objectives.kinds import Combination


@dataclass(eq=False)
class CombineTerms(StepCallback):
    """Weights the model's own loss and the terms that other callbacks add, by their gradients.

    The first gradient is that of the model's own loss, the others are those of the terms in the order of their names.
    They are the means over the ranks, so that all ranks weigh the same; the network is gone through backwards once for
    each of them, and their weighted sum is what gradient scalers, clipping and accumulation see as that of any other
    loss. Logged as ``train/weight_0``, ``train/weight_1``, ...

    Args:
        combination: the method, ``gradients (K, P) -> weights (K,)``.
    """

    kind = Combination
    place = "combination"
    beside = ("AddRegularizer",)
    refuses: ClassVar = {"fsdp2": WHOLE_GRADIENTS}

    combination: nn.Module | Callable[..., Tensor]

    def methods(self) -> list[Any]:
        """The one method."""
        return [self.combination]

    def combine(self, terms: Sequence[Tensor], pipeline: Pipeline) -> Tensor:
        """The weighted sum."""
        known = {name: pipeline.signals.get(name) for name in self.signals if name != "gradients"}
        given = Gradients(terms, pipeline) if "gradients" in self.signals else None
        if given is not None:
            known["gradients"] = given.rows
        weights: Tensor = self.combination(**known)
        if weights.shape != (len(terms),):
            raise ValueError(
                f"{self.combination} gave weights of shape {tuple(weights.shape)} for {len(terms)} terms of the loss."
            )
        pipeline.logged |= {f"weight_{i}": weight for i, weight in enumerate(weights.detach())}
        return weighted_sum(terms, weights) if given is None else given.weighted(weights)
