"""The Z-loss of the spherical family."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import of_target, wide
from lightning_objectives.shapes import check_shapes

_EPS = 1e-5
"""What is added to the variance, as in layer normalization, so that equal logits have a score of 0."""


def z_score_softplus_loss(logits: Tensor, target: Tensor, *, sharpness: float, margin: float) -> Tensor:
    r"""Compute how far the target's logit lies below a number of standard deviations above the mean logit.

    .. math::
        \ell = \frac{1}{a} \log\left(1 + e^{a (b - z_y)}\right), \qquad
        z_k = \frac{o_k - \bar o}{\sqrt{\frac{1}{C} \sum_j (o_j - \bar o)^2 + 10^{-5}}}

    The logits :math:`o` plus a number, or times a positive one, give the same loss. The score :math:`z` is at most
    :math:`\sqrt{C - 1}`.

    Args:
        logits: (N, C) with C >= 3, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.
        sharpness: :math:`a > 0`; the greater it is, the less is learned from targets above the margin.
        margin: :math:`b`, the score that targets shall reach.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, fewer than three classes, or a setting outside its range.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])  # z = (1.2247, -1.2247, 0)
        >>> z_score_softplus_loss(logits, torch.tensor([2]), sharpness=1.0, margin=0.0)  # log 2
        tensor([0.6931])

    Paper: de Brébisson and Vincent, The Z-loss: a Shift and Scale Invariant Classification Loss Belonging to the
    Spherical Family, 2016, https://arxiv.org/abs/1604.08859.

    Differs from the paper: the number 1e-5 under the root. The update of the last layer whose cost does not depend on
    the number of classes is not part of this loss.
    """
    _check(sharpness, margin)
    check_shapes(logits=logits, target=target)
    if logits.shape[1] < 3:
        raise ValueError(
            f"logits of the shape {tuple(logits.shape)} have fewer than three classes, but there must be three or more:"
            " of two logits the scores are always 1 and -1, so nothing could be learned. Use another loss."
        )
    scores = F.layer_norm(wide(logits), logits.shape[1:], eps=_EPS)
    return of_target(lambda z: F.softplus(sharpness * (margin - z)) / sharpness, target, scores)


def _check(sharpness: float, margin: float) -> None:
    if not 0 < sharpness < float("inf"):
        raise ValueError(f"sharpness={sharpness} must be > 0 and finite.")
    if not abs(margin) < float("inf"):
        raise ValueError(f"margin={margin} must be finite: a score that targets can reach, below the root of C - 1.")


class ZScoreSoftplusLoss(Loss):
    r"""Trains a classifier whose score for the target stands out of all classes, whatever the scale of the logits.

    The losses are those of :func:`z_score_softplus_loss`. Both settings are to be chosen for each problem.

    Args:
        sharpness: :math:`a > 0`.
        margin: :math:`b`, in standard deviations of the logits. The best possible score is the root of C - 1.

    Raises:
        ValueError: a setting outside its range; in a training, fewer than three classes.

    When to use: with very many classes, if the ranks of the classes matter and their probabilities do not. The paper
    reports better scores among the top k than log-softmax, on language models by words.
    Cost: that of cross entropy.
    Interactions: the logits have no scale, so their softmax is no probability: use the greatest one, or calibrate.
    Weight decay of the last layer changes the step size alone. Class weights and label smoothing of the replaced
    criterion are lost.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([2])
        >>> ZScoreSoftplusLoss(sharpness=1.0, margin=0.0)(logits, target)
        tensor([0.6931])
    """

    function = staticmethod(z_score_softplus_loss)
    family = "tuned cross entropy"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"sharpness": 1.0, "margin": 1.0}

    def __init__(self, *, sharpness: float, margin: float) -> None:
        super().__init__()
        _check(sharpness, margin)
        self.sharpness = sharpness
        self.margin = margin

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return z_score_softplus_loss(logits, target, sharpness=self.sharpness, margin=self.margin)
