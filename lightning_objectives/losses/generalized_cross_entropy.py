"""Generalized cross entropy."""

import math

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import log_probabilities, of_target, power_loss


def generalized_cross_entropy_loss(logits: Tensor, target: Tensor, *, q: float = 0.7, threshold: float = 0.0) -> Tensor:
    r"""Compute a loss between cross entropy and the mean absolute error.

    .. math::
        \ell = \frac{1 - \max(p_y, k)^q}{q}

    Its gradient is that of cross entropy times :math:`p_y^q`, and 0 where :math:`p_y \le k`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.
        q: :math:`q \in [0, 1]`. 0 is cross entropy; 1 is :math:`1 - p_y`, half of the mean absolute error.
        threshold: :math:`k \in [0, 1)`, below which a sample is no longer learned from; 0 for none.

    Returns:
        (N,) losses, at most :math:`1 / q`.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> import torch
        >>> generalized_cross_entropy_loss(torch.zeros(1, 2), torch.tensor([0]), q=1.0)
        tensor([0.5000])

    Paper: Zhang and Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels,
    NeurIPS 2018, https://arxiv.org/abs/1805.07836.

    Differs from the paper: the truncated loss decides by the probabilities of this step. The paper prunes by those of
    the whole data set, which it computes anew every few epochs.
    """
    _check(q, threshold)

    def formula(log_p: Tensor) -> Tensor:
        # torch.where gives no gradient where p equals the threshold; that of clamp depends on the version of torch.
        kept = torch.where(log_p > math.log(threshold), log_p, math.log(threshold)) if threshold else log_p
        return power_loss(kept, q)

    return of_target(formula, target, log_probabilities(logits, target))


def _check(q: float, threshold: float) -> None:
    if not 0 <= q <= 1:
        raise ValueError(f"q={q} must be in [0, 1]; 0 is cross entropy, and 1 half of the mean absolute error.")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold} must be in [0, 1), because it is a probability; 0 for none.")


class GeneralizedCrossEntropyLoss(Loss):
    r"""Makes training robust to noisy labels: samples that the network thinks wrong pull less.

    The losses are those of :func:`generalized_cross_entropy_loss`.

    Args:
        q: greater values are more robust to noisy labels and slower to fit; the paper uses 0.7.
        threshold: :math:`k`; the paper's truncated loss uses 0.5. Begin with 0: at the start few samples are above.

    Raises:
        ValueError: a setting outside its range.

    When to use: if a good part of the labels is wrong. With many classes (100 and more) the start is slow, because a
    gradient has the factor :math:`p_y^q`: use a smaller ``q`` or begin with cross entropy.
    Cost: that of cross entropy.
    Interactions: the probabilities are sharper than the true ones (0.94 where 0.7 is true, at 0.7), so calibrate them
    afterwards. Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> GeneralizedCrossEntropyLoss(q=0.0)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(generalized_cross_entropy_loss)
    family = "label noise"
    problems = ("classes",)

    def __init__(self, *, q: float = 0.7, threshold: float = 0.0) -> None:
        super().__init__()
        _check(q, threshold)
        self.q = q
        self.threshold = threshold

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return generalized_cross_entropy_loss(logits, target, q=self.q, threshold=self.threshold)
