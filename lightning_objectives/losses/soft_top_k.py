"""Soft top-k loss for labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._slopes import with_slopes
from lightning_objectives.losses._targets import shares, wide
from lightning_objectives.shapes import check_shapes

_STEPS = 50
"""Halvings of the interval that holds the threshold: enough for float64."""


def soft_top_k_loss(logits: Tensor, target: Tensor, *, k: int | None = None, sharpness: float = 1.0) -> Tensor:
    r"""Compute how far the positive labels are from being among the k highest.

    .. math::
        \ell = \frac{1}{|P|} \sum_{l \in P} -\log \sigma(\alpha (z_l + t)), \qquad \sum_j \sigma(\alpha (z_j + t)) = k

    The threshold :math:`t` of each sample depends on its logits, and gradients flow through it.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        target: (N, C) float labels, or (N,) int classes, which are labels of one class. Labels above 0 are positive,
            and are weighted by their value.
        k: how many labels are chosen, from 1 to C - 1; None for as many as the sample has positive labels.
        sharpness: :math:`\alpha > 0`; greater values come closer to a hard choice.

    Returns:
        (N,) losses; 0 for a sample of which no label, or with ``k=None`` every label, is positive. Their second
        derivative is refused.

    Raises:
        ValueError: shapes that do not fit, a ``k`` outside its range, or a ``sharpness`` that is not positive.

    Example:
        >>> soft_top_k_loss(torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))  # each has a chance of 1/2
        tensor([0.6931])

    Paper: Gupta et al., Dual-Encoders for Extreme Multi-Label Classification, ICLR 2024,
    https://arxiv.org/abs/2310.10636.
    """
    _check(k, sharpness)
    check_shapes(logits=logits, target=target)
    if k is not None and k >= logits.shape[1]:
        raise ValueError(f"k={k} must be below the number of labels in logits of the shape {tuple(logits.shape)}.")
    logits = wide(logits)
    weights = shares(logits, target)
    positive = (weights > 0).sum(1, keepdim=True)
    with torch.no_grad():
        chosen = positive.to(logits.dtype) if k is None else torch.full_like(logits[:, :1], k)
        x = sharpness * (logits + _thresholds(logits, chosen, sharpness))
        weights = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
        # A logit of a label without weight may be -inf, and 0 * inf is NaN.
        losses = torch.where(weights > 0, -weights * F.logsigmoid(x), 0.0).sum(1)
        missing = weights * (-x).sigmoid()
        of_threshold = (F.logsigmoid(x) + F.logsigmoid(-x)).softmax(1)
        slopes = sharpness * (of_threshold * missing.sum(1, keepdim=True) - missing)
        counts = (positive > 0) & (chosen < logits.shape[1])
    zero = torch.zeros_like(slopes)
    return with_slopes(
        logits, torch.where(counts[:, 0], losses, zero[:, 0]), torch.where(counts, slopes, zero), "soft_top_k_loss"
    )


def _thresholds(logits: Tensor, chosen: Tensor, sharpness: float) -> Tensor:
    """(N, 1) the t for which the sigmoids sum to the chosen number."""
    # If all logits were the highest, or the lowest, t would be one of these. Rows that choose none or all do not count.
    within = chosen.clamp(0.5, logits.shape[1] - 0.5)
    odds = (within.log() - (logits.shape[1] - within).log()) / sharpness
    low, high = odds - logits.amax(1, keepdim=True), odds - logits.amin(1, keepdim=True)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        enough = (sharpness * (logits + middle)).sigmoid().sum(1, keepdim=True) > chosen
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return (low + high) / 2


def _check(k: int | None, sharpness: float) -> None:
    if k is not None and k < 1:
        raise ValueError(f"k={k} must be >= 1, or None for the number of positive labels.")
    if not 0 < sharpness < float("inf"):
        raise ValueError(f"sharpness={sharpness} must be > 0 and finite.")


class SoftTopKLoss(Loss):
    r"""Trains on several labels so that the positive ones are among the k highest.

    The losses are those of :func:`soft_top_k_loss`.

    Args:
        k: the k of the precision at k that you judge by; None for each sample's number of positive labels.
        sharpness: :math:`\alpha`; above 1 for logits that are cosines. We know of no value for all tasks.

    Raises:
        ValueError: a ``k`` or a ``sharpness`` outside its range.

    When to use: very many labels, judged by the precision or the recall of the k highest.
    Cost: fifty sigmoids of the logits, without gradient.
    Interactions: the logits rank the labels and are no probabilities of single labels. Smoothed labels make every label
    positive: do not smooth. The criterion's ``weight`` and ``pos_weight`` are lost.

    Example:
        >>> SoftTopKLoss(k=1)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(soft_top_k_loss)
    family = "many labels"
    problems = ("classes", "labels")

    def __init__(self, *, k: int | None = None, sharpness: float = 1.0) -> None:
        super().__init__()
        _check(k, sharpness)
        self.k = k
        self.sharpness = sharpness

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N, C) labels or (N,) classes -> (N,) losses."""
        return soft_top_k_loss(logits, target, k=self.k, sharpness=self.sharpness)
