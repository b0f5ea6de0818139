"""StableMax cross entropy."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import expected, wide
from lightning_objectives.shapes import check_classes, check_shapes


def stable_max_loss(logits: Tensor, target: Tensor) -> Tensor:
    r"""Compute a cross entropy on probabilities that grow with the logits instead of with their exponentials.

    .. math::
        \ell = -\log \frac{s(z_y)}{\sum_k s(z_k)}, \qquad
        s(z) = \begin{cases} z + 1 & z \ge 0 \\ 1 / (1 - z) & z < 0 \end{cases}

    Since :math:`\log s(z) = \pm \log(1 + |z|)`, this is the cross entropy of the logits :math:`\log s(z)`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, or fewer than two classes.

    Example:
        >>> import torch
        >>> stable_max_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0]))  # log(3.5 / 2)
        tensor([0.5596])

    Paper: Prieto et al., Grokking at the Edge of Numerical Stability, ICLR 2025, https://arxiv.org/abs/2501.04697.

    Differs from the paper: its code computes the loss in float64. The logarithm of s needs no more than float32.
    """
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    return -expected(_log_s(wide(logits)).log_softmax(1), target)


def _log_s(logits: Tensor) -> Tensor:
    # Each branch sees 0 where the other one counts, because a logarithm of a negative number would spoil the gradient.
    positive = logits >= 0
    return torch.where(positive, logits, 0.0).log1p() - torch.where(positive, 0.0, -logits).log1p()


class StableMaxLoss(Loss):
    """Keeps the loss of samples that are fit from rounding to 0, so that a network can still learn to generalise late.

    The losses are those of :func:`stable_max_loss`.

    When to use: with networks that fit their training set long before they generalise (grokking), without weight decay.
    The paper shows it on modular arithmetic and sparse parity. Softmax cross entropy rounds to 0 there, and learning
    stops. The other remedy of the paper is ``OrthogonalGradient``.
    Cost: that of cross entropy.
    Interactions: the class with the greatest logit stays the most likely one, but the softmax of the logits is not the
    model's probability: calibrate, or use the paper's s. Class weights and label smoothing of the replaced criterion
    are lost.

    Example:
        >>> import torch
        >>> StableMaxLoss()(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(stable_max_loss)
    family = "numerical stability"
    problems = ("classes",)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return stable_max_loss(logits, target)
