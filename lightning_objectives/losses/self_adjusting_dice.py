"""Self-adjusting Dice loss."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import log_probabilities, shares


def self_adjusting_dice_loss(logits: Tensor, target: Tensor, *, alpha: float = 1.0, smooth: float = 1.0) -> Tensor:
    r"""Compute one minus a soft Dice coefficient of each sample and class, in which sure predictions count less.

    .. math::
        \ell = \frac{1}{C} \sum_k 1 - \frac{2 f_k q_k + \gamma}{f_k + q_k + \gamma}, \qquad
        f_k = (1 - p_k)^\alpha p_k

    with :math:`q` the target and :math:`p` the softmax.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities.
        alpha: :math:`\alpha \ge 0`, how much sure predictions are pushed down; 0 for none.
        smooth: :math:`\gamma > 0`, which keeps the gradient of the absent classes.

    Returns:
        (N,) losses in [0, 1).

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> import torch
        >>> self_adjusting_dice_loss(torch.zeros(1, 2), torch.tensor([0]))  # (1 - 1.5 / 2.25 + 1 - 1 / 1.25) / 2
        tensor([0.2667])

    Paper: Li et al., Dice Loss for Data-imbalanced NLP Tasks, ACL 2020, https://arxiv.org/abs/1911.02855.

    Differs from the authors' code: it divides the numerator of one sample by sums over the batch, and has no factor
    :math:`(1 - p)^\alpha` by default. This is the paper's form of a sample, with the mean over the classes.
    """
    _check(alpha, smooth)
    p = log_probabilities(logits, target).exp()
    q = shares(p, target)
    # The slope of x ** alpha at 0 is infinite for alpha < 1, and 0 * inf is NaN.
    f = p if alpha == 0 else (1 - p).clamp_min(torch.finfo(p.dtype).eps) ** alpha * p
    return (1 - (2 * f * q + smooth) / (f + q + smooth)).mean(1)


def _check(alpha: float, smooth: float) -> None:
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha={alpha} must be >= 0 and finite; 0 does not push sure predictions down.")
    if not 0 < smooth < float("inf"):
        raise ValueError(f"smooth={smooth} must be > 0 and finite, or absent classes would have no gradient.")


class SelfAdjustingDiceLoss(Loss):
    r"""Trains on few positives among very many negatives by overlap instead of likelihood.

    The losses are those of :func:`self_adjusting_dice_loss`.

    Args:
        alpha: :math:`\alpha`. The default is the value cited for the paper, which we did not check.
        smooth: :math:`\gamma`. The default is the value cited for the paper, which we did not check.

    Raises:
        ValueError: a setting outside its range.

    When to use: token classification in which nearly all tokens are of one class, if F1 is judged.
    Cost: that of cross entropy.
    Interactions: with an ``alpha`` above 0 the loss of the right class is least at a probability below 1 (at 1/2 for
    1), and a sample that is completely wrong has hardly any gradient. Train with cross entropy first, and calibrate
    afterwards. Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> SelfAdjustingDiceLoss(alpha=0.0)(torch.tensor([[100.0, 0.0]]), torch.tensor([0]))  # right
        tensor([0.])
    """

    function = staticmethod(self_adjusting_dice_loss)
    family = "class imbalance"
    problems = ("classes",)

    def __init__(self, *, alpha: float = 1.0, smooth: float = 1.0) -> None:
        super().__init__()
        _check(alpha, smooth)
        self.alpha = alpha
        self.smooth = smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return self_adjusting_dice_loss(logits, target, alpha=self.alpha, smooth=self.smooth)
