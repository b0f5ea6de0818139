"""The integrated gain of decisions on long-tailed classes."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._counts import by_class, check_counts
from lightning_objectives.losses._targets import expected, wide
from lightning_objectives.losses.ldam import ldam_loss
from lightning_objectives.shapes import check_classes, check_shapes


def integrated_gain_loss(
    logits: Tensor,
    target: Tensor,
    progress: float,
    *,
    counts: Sequence[float],
    alpha: float = 0.3,
    defer: float = 0.8,
    max_margin: float = 0.5,
    scale: float = 30.0,
) -> Tensor:
    r"""Compute a loss with margins for rare classes, and late in the training a charge for more frequent ones.

    .. math::
        \ell = -w_y \log p_y + \frac{1}{\alpha} \sum_{c \,:\, n_c > n_y} \frac{\log p_c}{n_c}, \qquad
        w_y = \frac{\sum_k n_k}{C \, n_y}

    with p the softmax with the margin of the target's class, of :func:`ldam_loss`. Before the part ``defer`` of the
    training is done, the loss is :func:`ldam_loss`.

    Args:
        logits: (N, C) with C >= 2, cosines from a head with normalised weights and features; computed in float32 or
            better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss and
            need C times the work.
        progress: the part of the training that is done, in [0, 1].
        counts: :math:`n`, the number of training samples of each class.
        alpha: :math:`\alpha > 0`; infinity leaves the second term out.
        defer: the part of the training after which the weights and the second term count.
        max_margin: the margin of the rarest class.
        scale: the factor of the cosines.

    Returns:
        (N,) losses. The second term is negative, and has no lower bound: it falls as a more frequent class becomes
        improbable. Classes whose logit is -inf do not count in it.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, counts of another number of classes, or a setting
            outside its range.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> integrated_gain_loss(logits, target, 1.0, counts=(3, 1), alpha=0.5, max_margin=0.0)
        tensor([0.4621, 0.9242])

    Paper: Li and Zhang, Long-tailed Classification from a Bayesian-decision-theory Perspective, 2023,
    https://arxiv.org/abs/2303.06075. The formula is that of the authors' code, and of their later paper's, Making
    Reliable and Flexible Decisions in Long-tailed Classification, TMLR 2025. Not checked at the source: the papers'
    text. The training scripts of both leave the second term out.

    Differs from the authors' code: one head, without the term that keeps several heads apart. The weights have the mean
    1 over the training data, and not over the batch, so that a sample's loss does not depend on the others.
    """
    counts = _check(counts, alpha, defer, max_margin, scale)
    if float(progress) < defer:
        return ldam_loss(logits, target, counts=counts, max_margin=max_margin, scale=scale)
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    numbers = by_class(counts, logits, "counts")
    logits = wide(logits)
    margins, charges, weights, numbers = (
        value.to(logits, non_blocking=True)
        for value in (
            max_margin * (numbers / numbers.amin()) ** -0.25,
            1 / (alpha * numbers),
            numbers.mean() / numbers,
            numbers,
        )
    )
    if not target.is_floating_point():
        rows = target.long()[:, None]
        log_p = (scale * logits.scatter_add(1, rows, -margins[rows])).log_softmax(1)
        charged = torch.where((numbers > numbers[rows]) & (log_p > -torch.inf), charges * log_p, 0.0)
        return charged.sum(1) - weights[rows[:, 0]] * expected(log_p, target)
    # Row k of the second dimension is for the target k.
    table = (scale * (logits[:, None] - margins.diag())).log_softmax(2)
    charged = torch.where((numbers > numbers[:, None]) & (table > -torch.inf), charges * table, 0.0)
    return expected(charged.sum(2) - weights * table.diagonal(dim1=1, dim2=2), target)


def _check(counts: Sequence[float], alpha: float, defer: float, max_margin: float, scale: float) -> tuple[float, ...]:
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be > 0; infinity leaves the second term out.")
    if not 0 <= defer <= 1:
        raise ValueError(f"defer={defer} must be in [0, 1]: the part of the training before the weights count.")
    if not 0 <= max_margin < math.inf:
        raise ValueError(f"max_margin={max_margin} must be >= 0 and finite; 0 is without margins.")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale={scale} must be > 0 and finite.")
    return check_counts(counts)


class IntegratedGainLoss(Loss):
    r"""Keeps samples of rare classes from being taken for a frequent class, which a long tail makes likely.

    The losses are those of :func:`integrated_gain_loss`: margins for rare classes from the start, weights by class and
    a charge for the probability of more frequent classes for the last part of the training.

    Args:
        counts: the number of training samples of each class, in the order of the logits.
        alpha: :math:`\alpha`; the smaller, the greater the charge. Infinity leaves it out.
        defer: the part of the training before the weights and the charge; the authors' code has 160 of 200 epochs.
        max_margin: the margin of the rarest class; the authors' code uses 0.5.
        scale: the factor of the cosines; the authors' code uses 30.

    Raises:
        ValueError: a count that is not positive, or a setting outside its range.

    When to use: long-tailed classes, if to take a rare class for a frequent one is worse than the reverse, with a
    network whose logits are cosines (``F.linear(F.normalize(features), F.normalize(weight))``). With
    ``alpha=math.inf`` it is LDAM with its deferred re-weighting.
    Cost: that of cross entropy.
    Interactions: the training must have an end. The charge has no lower bound, so the logged value may fall far below
    0: watch the accuracy of the frequent classes. Predict with the plain cosines. Class weights of the replaced
    criterion are lost.

    Example:
        >>> import torch
        >>> loss = IntegratedGainLoss(counts=(9, 3), max_margin=0.0, scale=1.0)
        >>> loss(torch.zeros(1, 2), torch.tensor([0]), progress=0.5)  # until the last fifth: cross entropy
        tensor([0.6931])
    """

    function = staticmethod(integrated_gain_loss)
    family = "class imbalance"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"counts": (100, 10, 1), "defer": 0.0}

    def __init__(
        self,
        *,
        counts: Sequence[float],
        alpha: float = 0.3,
        defer: float = 0.8,
        max_margin: float = 0.5,
        scale: float = 30.0,
    ) -> None:
        super().__init__()
        self.counts = _check(counts, alpha, defer, max_margin, scale)
        self.alpha = alpha
        self.defer = defer
        self.max_margin = max_margin
        self.scale = scale

    def forward(self, logits: Tensor, target: Tensor, progress: float) -> Tensor:
        """(N, C) cosines, (N,) classes or (N, C) probabilities, and the part that is done -> (N,) losses."""
        return integrated_gain_loss(
            logits,
            target,
            progress,
            counts=self.counts,
            alpha=self.alpha,
            defer=self.defer,
            max_margin=self.max_margin,
            scale=self.scale,
        )
