"""Uncertainty weighting: the weights of several tasks are trained with the network."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_objectives.kinds import Combination
from lightning_objectives.shapes import check_shapes

Task = Literal["classification", "regression"]


class UncertaintyWeighting(Combination):
    r"""Balances several tasks without weights to tune: learns how uncertain each task is.

    .. math::
        L = \sum_k w_k L_k + \tfrac12 s_k, \qquad
        w_k = e^{-s_k} \text{ (classification)}, \quad w_k = \tfrac12 e^{-s_k} \text{ (regression)}

    with a trained log variance :math:`s_k` for each term, 0 at the start. For fixed losses the best :math:`s_k` is
    :math:`\log 2 L_k` for a classification and :math:`\log L_k` for a regression: a task weighs as much as its loss is
    small.

    Args:
        tasks: what each term is, in the order of the terms: ``"classification"`` or ``"regression"``.

    Raises:
        ValueError: another word, or no task; in a step, another number of terms.

    When to use: with ``CombineTerms(..., criteria=True)``, if a network has several heads, and the losses differ in
    scale.
    Cost: one number for each task.
    Interactions: the losses must be negative log-likelihoods, so none below 0. If a loss comes close to 0, its weight
    grows without bound, and the objective falls below 0. The optimizer trains the log variances in the group of the
    network's head, with its learning rate and its weight decay, which pulls the weights to those of the start.

    Example:
        >>> UncertaintyWeighting(tasks=["classification", "regression"])(torch.tensor([2.0, 0.5]))
        tensor([1.0000, 0.5000], grad_fn=<MulBackward0>)

    Paper: Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018, equations 5 and 10,
    https://arxiv.org/abs/1705.07115. Not checked at the source: the numbers of the equations.
    """

    example: ClassVar = {"tasks": ("classification", "regression")}
    family = "multi-task"
    by_process = "its log variances are float32, and the means over the ranks round otherwise than those of one"
    unkept_laws: ClassVar = {"one_term_alone_keeps_its_weight": "it has a parameter for each task"}

    def __init__(self, *, tasks: Sequence[Task]) -> None:
        super().__init__()
        unknown = [task for task in tasks if task not in ("classification", "regression")]
        if unknown or not tasks or isinstance(tasks, str):
            raise ValueError(
                f"tasks={tasks!r} must hold 'classification' or 'regression' for each term of the loss, in their order."
            )
        self.tasks = tuple(tasks)
        self.log_variances = nn.Parameter(torch.zeros(len(tasks)))
        factors = [1.0 if task == "classification" else 0.5 for task in tasks]
        self.register_buffer("_factors", torch.tensor(factors), persistent=False)
        self._factors: Tensor

    def forward(self, terms: Tensor) -> Tensor:
        """(K,) terms -> (K,) weights, with a gradient."""
        check_shapes(terms=terms)
        if len(terms) != len(self.tasks):
            raise ValueError(
                f"The loss has {len(terms)} terms, but tasks={self.tasks} names {len(self.tasks)}. Name each term in "
                "the order of its criterion's call, and then those that callbacks add."
            )
        return self._factors * (-self.log_variances).exp()

    def penalty(self) -> Tensor:
        """Half the sum of the log variances."""
        return self.log_variances.sum() / 2
