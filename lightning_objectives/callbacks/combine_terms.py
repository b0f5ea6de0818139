"""Combines the terms of the loss by their gradients."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.gradients import WHOLE_GRADIENTS, Gradients, weighted_sum
from lightning_objectives._step.plan import Plan
from lightning_objectives._step.step import Step
from lightning_objectives._trainer.ranks import averaged_over_ranks
from lightning_objectives.kinds import Combination


@dataclass(eq=False)
class CombineTerms(StepCallback):
    """Weights the terms of the loss: the criteria of a step with several tasks, and the terms that callbacks add.

    By default the model's own loss is the first term. With ``criteria=True`` each criterion in the loss is a term of
    its own, in the order of the calls, times the factor that your code gives it; what the loss has beside its criteria
    stays as it is. The terms that callbacks add come after these, in the order of their names.

    A method that asks for gradients costs a backward pass through the network for each term. Gradients and values
    are means over the ranks, so that each rank computes the same weights. Gradient scaling, clipping and accumulation
    see the weighted sum as the gradient of any other loss. The weights are logged as ``train/weight_0``,
    ``train/weight_1``, ...

    A method may have parameters of its own, which the optimizer trains with the network. The callback saves them, and
    the module's state and files do not contain them.

    Args:
        combination: the method, from ``gradients (K, P)`` or ``terms (K,)`` to weights (K,).
        criteria: combine the criteria of your step. True for torch's own, which are seen by themselves. If you have
            others, their paths, ``["margin_loss", "net.prior"]``: methods or modules that return a loss. Each is then
            one term, whatever it calls; torch's criteria outside of them are terms too.

    Raises:
        ValueError: at the start of the training, if there is neither an added term nor ``criteria=``, or nothing to
            call at a path; in the training, if a step computes its loss from no criterion, or from others than the
            first step, and the method keeps something of each term; in its first step, if a named one is not in the
            loss.

    Example:
        >>> from lightning_objectives.combination import GradientAlignment
        >>> CombineTerms(GradientAlignment(), criteria=True).combination
        GradientAlignment()
    """

    kind = Combination
    place = "combination"
    beside = ("AddRegularizer",)
    draws_by_rank = False  # The gradients are means over the ranks.
    refuses: ClassVar = {"fsdp2": WHOLE_GRADIENTS}

    combination: nn.Module | Callable[..., Tensor]
    _: KW_ONLY
    criteria: bool | Sequence[str] = False

    def __post_init__(self) -> None:
        if isinstance(self.criteria, str):
            raise ValueError(f"criteria={self.criteria!r} must be a list of paths: criteria=[{self.criteria!r}].")
        self._names: tuple[str, ...] | None = None
        """The criteria of the first step of the fit."""

    def methods(self) -> list[Any]:
        """The combination."""
        return [self.combination]

    def build(self, plan: Plan, head: nn.Module | None) -> None:
        """Refuse a training without a term.

        Raises:
            ValueError: no callback of the training adds a term.
        """
        self._names = None
        if not self.criteria and not any(getattr(c, "place", "") == "term" for c in plan.trainer.callbacks):
            raise ValueError(
                f"CombineTerms({self.combination}) has nothing to combine: no callback of this training adds a term to "
                "the loss. Say criteria=True to combine the criteria of your own step, add a callback such as "
                "AddRegularizer or Distill, or remove CombineTerms."
            )

    def combine(self, terms: Sequence[Tensor], step: Step) -> Tensor:
        """Compute the weighted sum of the terms.

        Raises:
            ValueError: the method does not return one weight for each term, or a criterion is new or missing.
        """
        self._check_names(step)
        signals = {name: self.signal(name, step) for name in self.signals if name not in ("gradients", "terms")}
        if "terms" in self.signals:
            values = torch.stack([term.detach().float() for term in terms])
            signals["terms"] = averaged_over_ranks({"terms": values}, {"terms": values})["terms"]
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
        combined = weighted_sum(terms, weights) if gradients is None else gradients.weighted(weights)
        penalty = self.combination.penalty() if isinstance(self.combination, Combination) else None
        return combined if penalty is None else combined + penalty.to(combined)

    def _check_names(self, step: Step) -> None:
        """Refuse criteria that are not in the loss, or that change, if the method keeps something of each term.

        Raises:
            ValueError: with what is missing, or with both.
        """
        if step.criteria is None:
            return
        names, first = tuple(step.criteria.names), self._names
        if first is None:
            self._names = names
            missing = [path for path in (() if isinstance(self.criteria, bool) else self.criteria) if path not in names]
            if missing:
                raise ValueError(
                    f"criteria names {', '.join(missing)}, whose value is not in the loss that "
                    f"{type(step.module).__name__}.training_step returns: its terms are {', '.join(names)}. Leave out "
                    "what is no part of the loss, or name the method that computes that part."
                )
        keeps = isinstance(self.combination, nn.Module) and self.combination.state_dict()
        if keeps and names != self._names:
            raise ValueError(
                f"The loss of this step has the criteria {', '.join(names)}, that of the first step had "
                f"{', '.join(self._names or ())}, but {self.combination} keeps something of each. Compute the same "
                "criteria in each step, times 0 where there is nothing to compare."
            )
