"""Balanced softmax."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._counts import check_counts
from lightning_objectives.losses.logit_adjusted import logit_adjusted_loss


def balanced_softmax_loss(logits: Tensor, target: Tensor, *, counts: Sequence[float]) -> Tensor:
    r"""Compute the cross entropy of a softmax in which each class counts as often as it has samples.

    .. math::
        \ell = -\log \frac{n_y e^{z_y}}{\sum_k n_k e^{z_k}}

    It is :func:`~lightning_objectives.losses.logit_adjusted_loss` at a strength of 1.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities.
        counts: :math:`n`, the number of training samples of each class; a common factor changes nothing.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, counts of another number of classes, or a count that
            is not positive.

    Example:
        >>> import torch
        >>> balanced_softmax_loss(torch.zeros(1, 2), torch.tensor([1]), counts=(3, 1))  # -log 1/4
        tensor([1.3863])

    Paper: Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, NeurIPS 2020,
    https://arxiv.org/abs/2007.10740.

    Differs from the paper: the loss alone, without the meta sampler.
    """
    return logit_adjusted_loss(logits, target, counts=counts)


class BalancedSoftmaxLoss(Loss):
    """Trains on classes of very different sizes as if each had the same number of samples.

    The losses are those of :func:`balanced_softmax_loss`.

    Args:
        counts: the number of training samples of each class, in the order of the logits.

    Raises:
        ValueError: a count that is not positive.

    When to use: long-tailed classes, judged by the mean accuracy of the classes. Predict with the plain logits. Use
    ``LogitAdjustedLoss`` to tune the strength.
    Cost: that of cross entropy.
    Interactions: those of ``LogitAdjustedLoss``.

    Example:
        >>> import torch
        >>> BalancedSoftmaxLoss(counts=(5, 5))(torch.zeros(1, 2), torch.tensor([0]))  # equal counts: cross entropy
        tensor([0.6931])
    """

    function = staticmethod(balanced_softmax_loss)
    family = "class imbalance"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"counts": (100, 10, 1)}

    def __init__(self, *, counts: Sequence[float]) -> None:
        super().__init__()
        self.counts = check_counts(counts)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return balanced_softmax_loss(logits, target, counts=self.counts)
