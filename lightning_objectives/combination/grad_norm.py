"""GradNorm: the weights of several tasks move until their gradients have the lengths that they shall have."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Combination
from lightning_objectives.shapes import check_shapes


class GradNorm(Combination):
    r"""Balances several tasks: raises the weight of a task that learns slowly, or whose gradient is short.

    The weights begin at 1. After each step they move by the slope of

    .. math::
        \sum_k \left| w_k \|g_k\| - \bar G \, r_k^\alpha \right|, \qquad
        \bar G = \frac1K \sum_j w_j \|g_j\|, \quad
        r_k = \frac{L_k / L_k^0}{\frac1K \sum_j L_j / L_j^0}

    for :math:`w_k` alone, with :math:`\bar G r_k^\alpha` as a constant. Then they are scaled to the sum K.

    Args:
        tasks: K, the number of terms.
        alpha: :math:`\alpha \ge 0`: how strongly slow tasks are pulled along. 0 makes all gradients equally long.
        step_size: how far the weights move, times the length of the gradient.
        initial_losses: :math:`L^0`, a number > 0 for each term; None takes those of the first step. For a cross entropy
            the logarithm of the number of classes is less noisy.

    Returns:
        ``forward(gradients, terms)`` gives (K,) weights >= 0 with the sum K, float32, without gradient. A step in which
        a number is not finite does not move them.

    Raises:
        ValueError: fewer than one task, or a setting out of its range; in a step, another number of terms.

    When to use: with ``CombineTerms(..., criteria=True)``, if some tasks of a network learn faster than others. The
    higher ``alpha``, the more the pace of the tasks may differ by nature.
    Cost: a backward pass through the network for each term, instead of one for all of them, and K + 1 gradients in
    memory at once. Several processes need one more all-reduce, of K gradients.
    Interactions: a step moves a weight by ``step_size`` times the length of its gradient, so lower it where gradients
    are long: if the logged weights jump, it is too high. With accumulated gradients the weights move in each part of a
    batch. The losses must be above 0.

    Example:
        >>> method = GradNorm(tasks=2, alpha=0.0, step_size=0.1)
        >>> gradients, terms = torch.tensor([[3.0], [1.0]]), torch.ones(2)
        >>> method(gradients, terms), method(gradients, terms)  # 1 - 0.3 and 1 + 0.1, scaled by 2 / 1.8
        (tensor([1., 1.]), tensor([0.7778, 1.2222]))

    Paper: Chen et al., GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks, ICML
    2018, algorithm 1, https://arxiv.org/abs/1711.02257. Not checked at the source: the values of ``alpha`` (1.5 for
    NYUv2, 0.12 for a toy problem) and of ``step_size``, and the optimizer of the weights, which is plain descent here.

    Differs from the paper: the gradients are those of all parameters, and not of the last shared layer alone. A weight
    that would be negative is 0.
    """

    example: ClassVar = {"tasks": 2}
    family = "multi-task"
    unkept_laws: ClassVar = {"one_term_alone_keeps_its_weight": "it keeps a weight for each task"}
    weights: Tensor
    first_losses: Tensor

    def __init__(
        self,
        *,
        tasks: int,
        alpha: float = 1.5,
        step_size: float = 0.025,
        initial_losses: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not tasks >= 1:
            raise ValueError(f"tasks={tasks} must be at least 1: the number of terms of the loss.")
        for name, value in (("alpha", alpha), ("step_size", step_size)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be >= 0 and finite.")
        if initial_losses is not None and (
            len(initial_losses) != tasks or not all(0 < loss < float("inf") for loss in initial_losses)
        ):
            raise ValueError(f"initial_losses={initial_losses} must be a number > 0 for each of the {tasks} tasks.")
        self.tasks = tasks
        self.alpha = alpha
        self.step_size = step_size
        self.initial_losses = None if initial_losses is None else tuple(initial_losses)
        self.register_buffer("weights", torch.ones(tasks))
        unknown = [float("nan")] * tasks  # NaN until the first step
        self.register_buffer("first_losses", torch.tensor(self.initial_losses or unknown))

    def forward(self, gradients: Tensor, terms: Tensor) -> Tensor:
        """(K, P) gradients and (K,) terms -> (K,) weights; moves the weights of the next step."""
        check_shapes(gradients=gradients, terms=terms)
        if len(terms) != self.tasks:
            raise ValueError(f"The loss has {len(terms)} terms, but tasks={self.tasks}. Set tasks={len(terms)}.")
        used, terms = self.weights, terms.detach().to(self.weights.dtype)
        lengths = torch.linalg.vector_norm(gradients.detach().to(used.dtype), dim=1)
        finite = terms.isfinite().all() & lengths.isfinite().all()
        first = torch.where(self.first_losses.isnan(), terms, self.first_losses)
        # A first loss of 0 says nothing of the pace.
        ratios = torch.where(first > 0, terms / torch.where(first > 0, first, 1.0), 1.0).clamp_min(0)
        total = ratios.mean()
        paces = torch.where(total > 0, ratios / torch.where(total > 0, total, 1.0), 1.0)
        own = used * lengths
        slopes = (own - own.mean() * paces**self.alpha).sign() * lengths
        moved = (used - self.step_size * slopes).clamp_min(0)
        scaled = moved / moved.mean()
        self.weights = torch.where(finite & scaled.isfinite().all(), scaled, used)
        self.first_losses = torch.where(finite, first, self.first_losses)
        return used
