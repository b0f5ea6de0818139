"""Logit-adjusted softmax cross entropy."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._counts import by_class, check_counts
from lightning_objectives.losses._targets import expected, wide
from lightning_objectives.shapes import check_classes, check_shapes


def logit_adjusted_loss(logits: Tensor, target: Tensor, *, counts: Sequence[float], strength: float = 1.0) -> Tensor:
    r"""Compute the cross entropy of logits to which the logarithms of the classes' frequencies are added.

    .. math::
        \ell = -\log \operatorname{softmax}(z + \tau \log \pi)_y, \qquad \pi_k = \frac{n_k}{\sum_j n_j}

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities.
        counts: :math:`n`, the number of training samples of each class, or their shares: a common factor changes
            nothing.
        strength: :math:`\tau \ge 0`; 0 is cross entropy.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, counts of another number of classes, a count that
            is not positive, or a negative ``strength``.

    Example:
        >>> import torch
        >>> logit_adjusted_loss(torch.zeros(1, 2), torch.tensor([1]), counts=(3, 1))  # -log 1/4
        tensor([1.3863])

    Paper: Menon et al., Long-tail Learning via Logit Adjustment, ICLR 2021,
    https://arxiv.org/abs/2007.07314.

    Differs from the authors' code: it adds 1e-12 to :math:`\pi^\tau` before the logarithm, which is wrong for rare
    classes at a great :math:`\tau`. Here the logarithm is exact.
    """
    counts = _check(counts, strength)
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    numbers = by_class(counts, logits, "counts")
    adjustment = strength * (numbers / numbers.sum()).log()
    logits = wide(logits)
    return -expected((logits + adjustment.to(logits, non_blocking=True)).log_softmax(1), target)


def _check(counts: Sequence[float], strength: float) -> tuple[float, ...]:
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength={strength} must be >= 0 and finite; 0 is cross entropy.")
    return check_counts(counts)


class LogitAdjustedLoss(Loss):
    r"""Trains on classes of very different sizes for a test in which all of them count the same.

    The losses are those of :func:`logit_adjusted_loss`.

    Args:
        counts: the number of training samples of each class, in the order of the logits.
        strength: :math:`\tau`; the paper uses 1, which is right if the test has as many samples of each class.

    Raises:
        ValueError: a count that is not positive, or a negative ``strength``.

    When to use: long-tailed classes, judged by the mean accuracy of the classes. Predict with the plain logits.
    Cost: that of cross entropy.
    Interactions: adjust once: neither at prediction again, nor with class-balanced weights or a balanced sampler, for
    which the counts are no longer those of the batches. The validation loss of your code is not adjusted and may rise
    while the accuracy does. Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> LogitAdjustedLoss(counts=(5, 5))(torch.zeros(1, 2), torch.tensor([0]))  # equal counts: cross entropy
        tensor([0.6931])
    """

    function = staticmethod(logit_adjusted_loss)
    family = "class imbalance"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"counts": (100, 10, 1)}

    def __init__(self, *, counts: Sequence[float], strength: float = 1.0) -> None:
        super().__init__()
        self.counts = _check(counts, strength)
        self.strength = strength

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return logit_adjusted_loss(logits, target, counts=self.counts, strength=self.strength)
