"""Label-distributionally robust loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.shapes import check_classes, check_shapes


def score_gaps(logits: Tensor, target: Tensor, *, margin: float = 0.0) -> Tensor:
    r"""Compute by how much each class scores above the target's: :math:`d_k = z_k - z_y + c \, [k \ne y]`.

    For a target (N, C) of class probabilities :math:`q` this is its expectation: :math:`z_k - q^\top z + c (1 - q_k)`.

    Returns:
        (N, C), in float32 at least.

    Raises:
        ValueError: the shapes do not fit, there are fewer than two classes, or the margin is negative or infinite.

    >>> score_gaps(torch.tensor([[1.0, 3.0]]), torch.tensor([0]), margin=0.5)
    tensor([[0.0000, 2.5000]])
    """
    _check_margin(margin)
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shares = target if target.is_floating_point() else F.one_hot(target.long(), logits.shape[1])
    shares = shares.to(logits.dtype)
    return logits - (shares * logits).sum(1, keepdim=True) + margin * (1 - shares)


def ldr_loss(logits: Tensor, target: Tensor, *, temperature: float = 1.0, margin: float = 0.0) -> Tensor:
    r"""Compute the worst mean gap over label distributions that are near the uniform one.

    .. math::
        \ell = \max_{p \in \Delta} \; \sum_k p_k d_k - \lambda \, \mathrm{KL}(p \,\|\, 1/C)
             = \lambda \log \frac{1}{C} \sum_k e^{d_k / \lambda}

    with the gaps :math:`d` of :func:`score_gaps`. At :math:`\lambda = 1` without margin it is cross entropy minus
    :math:`\log C`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities.
        temperature: :math:`\lambda \ge 0`. 0 gives :math:`\max_k d_k`, the SVM of Crammer and Singer. Infinity gives
            :math:`\frac{1}{C} \sum_k d_k`, which is symmetric and therefore robust to noisy labels.
        margin: :math:`c \ge 0`.

    Returns:
        (N,) losses, which may be negative: a loss is 0 if all its gaps are 0.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a negative temperature or margin.

    Example:
        >>> ldr_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))  # log((1 + e) / 2)
        tensor([0.6201])

    Paper: Zhu, Ying and Yang, Label Distributionally Robust Losses for Multi-class Classification: Consistency,
    Robustness and Adaptivity, ICML 2023, https://arxiv.org/abs/2112.14869.

    Differs from the paper: a target of class probabilities takes the mean of the gaps.
    """
    _check(temperature, margin)
    gaps = score_gaps(logits, target, margin=margin)
    if temperature == 0:
        return gaps.amax(1)
    if temperature == math.inf:
        return gaps.mean(1)
    return temperature * ((gaps / temperature).logsumexp(1) - math.log(gaps.shape[1]))


def _check(temperature: float, margin: float) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature} must be >= 0; 1 is cross entropy minus log C.")
    _check_margin(margin)


def _check_margin(margin: float) -> None:
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin={margin} must be >= 0 and finite.")


class LDRLoss(Loss):
    r"""Makes training robust to noisy labels: one temperature leads from an SVM by way of cross entropy to a robust
    loss.

    The losses are those of :func:`ldr_loss`.

    Args:
        temperature: :math:`\lambda \ge 0`; greater values are more robust to noisy labels and slower to fit.
        margin: :math:`c \ge 0`, by how much the target's class must score above each other class.

    Raises:
        ValueError: a negative temperature or margin.

    When to use: with noisy labels (a temperature above 1), or to choose between cross entropy and an SVM.
    Cost: that of cross entropy.
    Interactions: gradients are those of cross entropy at logits divided by the temperature. The logits therefore grow
    with the temperature, and the probabilities need a calibration afterwards. Class weights of the replaced criterion
    are lost.

    Example:
        >>> LDRLoss(temperature=0.0, margin=0.1)(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
        tensor([1.1000])
    """

    function = staticmethod(ldr_loss)
    family = "label noise"
    problems = ("classes",)

    def __init__(self, *, temperature: float = 1.0, margin: float = 0.0) -> None:
        super().__init__()
        _check(temperature, margin)
        self.temperature = temperature
        self.margin = margin

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return ldr_loss(logits, target, temperature=self.temperature, margin=self.margin)
