"""Probability-based objectives for fine-tuning."""

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import log_probabilities, of_target, power_loss

Keep = Literal["all", "above", "below"]


def probability_power_loss(
    logits: Tensor, target: Tensor, *, power: float = 1.0, keep: Keep = "all", threshold: float = 0.1
) -> Tensor:
    r"""Compute a power of the target's probability, for the targets above or below a threshold alone if you say so.

    .. math::
        \ell = \frac{1 - p_y^\alpha}{\alpha} \; [p_y \ge q]

    Its gradient is that of cross entropy times :math:`p_y^\alpha`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.
        power: :math:`\alpha \ge 0`. 0 is cross entropy, 1 is :math:`1 - p_y`.
        keep: ``all``, or ``above`` for the targets with :math:`p_y \ge q`, or ``below`` for those with
            :math:`p_y \le q`. The others have the loss 0, but still count in a mean.
        threshold: :math:`q \in (0, 1)`.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.2, 0.8]]).log()
        >>> probability_power_loss(logits, torch.tensor([1]), power=2.0)  # (1 - 0.64) / 2
        tensor([0.1800])

    Paper: Li et al., Beyond Log Likelihood: Probability-Based Objectives for Supervised Fine-Tuning across the Model
    Capability Continuum, 2025, https://arxiv.org/abs/2510.00526.

    Differs from the paper: negative powers are refused, because they grow without bound where the probability is 0.
    """
    _check(power, keep, threshold)

    def formula(log_p: Tensor) -> Tensor:
        losses = power_loss(log_p, power)
        if keep == "all":
            return losses
        edge = math.log(threshold)
        return torch.where(log_p >= edge if keep == "above" else log_p <= edge, losses, 0.0)

    return of_target(formula, target, log_probabilities(logits, target))


def _check(power: float, keep: str, threshold: float) -> None:
    if not 0 <= power < float("inf"):
        raise ValueError(f"power={power} must be >= 0 and finite; 0 is cross entropy.")
    if keep not in ("all", "above", "below"):
        raise ValueError(f"keep={keep!r} must be 'all', 'above' or 'below'.")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold} must be in (0, 1), because it is a probability.")


class ProbabilityPowerLoss(Loss):
    r"""Fine-tunes a strong model without forcing the targets upon it that it thinks impossible.

    The losses are those of :func:`probability_power_loss`.

    Args:
        power: :math:`\alpha`; the paper compares 0, 1 and 10.
        keep: which targets count: ``all``, those ``above`` the threshold, or those ``below`` it.
        threshold: :math:`q`.

    Raises:
        ValueError: a setting outside its range.

    When to use: supervised fine-tuning of a model that already knows much of the task, such as mathematics: 1, 10 or
    ``keep="above"``. Where the model is weak, keep cross entropy.
    Cost: that of cross entropy.
    Interactions: gradients are smaller than those of cross entropy by :math:`p^\alpha`, so a from-scratch training
    hardly starts. Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> ProbabilityPowerLoss(power=0.0)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(probability_power_loss)
    family = "fine-tuning"
    problems = ("classes",)

    def __init__(self, *, power: float = 1.0, keep: Keep = "all", threshold: float = 0.1) -> None:
        super().__init__()
        _check(power, keep, threshold)
        self.power = power
        self.keep: Keep = keep
        self.threshold = threshold

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return probability_power_loss(logits, target, power=self.power, keep=self.keep, threshold=self.threshold)
