"""Label-distribution-aware margin loss."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._counts import by_class, check_counts
from lightning_objectives.losses._targets import expected, wide
from lightning_objectives.shapes import check_classes, check_shapes


def ldam_loss(
    logits: Tensor, target: Tensor, *, counts: Sequence[float], max_margin: float = 0.5, scale: float = 30.0
) -> Tensor:
    r"""Compute the cross entropy of scaled cosines, with a margin that is greater for rarer classes.

    .. math::
        \ell = -\log \frac{e^{s (z_y - m_y)}}{e^{s (z_y - m_y)} + \sum_{k \ne y} e^{s z_k}}, \qquad
        m_k = m \left(\frac{n_k}{n_{min}}\right)^{-1/4}

    Args:
        logits: (N, C) with C >= 2, cosines from a head with normalised weights and features; computed in float32 or
            better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss and
            need C times the work.
        counts: :math:`n`, the number of training samples of each class; a common factor changes nothing.
        max_margin: :math:`m \ge 0`, the margin of the rarest class; 0 is the cross entropy of the scaled cosines.
        scale: :math:`s > 0`.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, counts of another number of classes, or a setting
            outside its range.

    Example:
        >>> import torch
        >>> cosines = torch.tensor([[0.5, 0.2, -0.3]])
        >>> ldam_loss(cosines, torch.tensor([1]), counts=(100, 10, 1))  # a margin of 0.2812
        tensor([17.4351])

    Paper: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019,
    https://arxiv.org/abs/1906.07413.
    """
    counts = _check(counts, max_margin, scale)
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    numbers = by_class(counts, logits, "counts")
    logits = wide(logits)
    margins = (max_margin * (numbers / numbers.amin()) ** -0.25).to(logits, non_blocking=True)
    if not target.is_floating_point():
        rows = target.long()[:, None]
        lowered = logits.scatter_add(1, rows, -margins[rows])
        return -expected((scale * lowered).log_softmax(1), target)
    # Row k of the second dimension has the margin of class k.
    lowered = logits[:, None] - margins.diag()
    return expected(-(scale * lowered).log_softmax(2).diagonal(dim1=1, dim2=2), target)


def _check(counts: Sequence[float], max_margin: float, scale: float) -> tuple[float, ...]:
    if not 0 <= max_margin < float("inf"):
        raise ValueError(f"max_margin={max_margin} must be >= 0 and finite; 0 is cross entropy.")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale={scale} must be > 0 and finite.")
    return check_counts(counts)


class LDAMLoss(Loss):
    r"""Gives rare classes a greater margin, so that they generalise better.

    The losses are those of :func:`ldam_loss`.

    Args:
        counts: the number of training samples of each class, in the order of the logits.
        max_margin: the margin of the rarest class; the authors' code uses 0.5.
        scale: the factor of the cosines; the authors' code uses 30.

    Raises:
        ValueError: a count that is not positive, or a setting outside its range.

    When to use: long-tailed classes, with a network whose logits are cosines (``F.linear(F.normalize(features),
    F.normalize(weight))``). Beside plain logits, which are often far greater than 1, a margin of 0.5 means little, and
    a scale of 30 is too much.
    Cost: that of cross entropy.
    Interactions: the paper turns to class-balanced weights for the last fifth of the training (deferred re-weighting),
    which is not part of this loss. Predict with the plain cosines. Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> LDAMLoss(counts=(9, 3), max_margin=0.0, scale=1.0)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(ldam_loss)
    family = "class imbalance"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"counts": (100, 10, 1)}

    def __init__(self, *, counts: Sequence[float], max_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__()
        self.counts = _check(counts, max_margin, scale)
        self.max_margin = max_margin
        self.scale = scale

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) cosines and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return ldam_loss(logits, target, counts=self.counts, max_margin=self.max_margin, scale=self.scale)
