"""Focal loss on a softmax."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._counts import by_class
from lightning_objectives.losses._targets import log_probabilities, of_target


def focal_loss(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, class_weights: Sequence[float] | None = None
) -> Tensor:
    r"""Compute a cross entropy that counts less if the network is already right.

    .. math::
        \ell = -\alpha_y (1 - p_y)^\gamma \log p_y

    with :math:`p_y` the softmax probability of the target's class, before any weight.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.
        gamma: :math:`\gamma \ge 0`; 0 is cross entropy.
        class_weights: :math:`\alpha`, one weight for each class; None for 1.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> import torch
        >>> focal_loss(torch.zeros(1, 2), torch.tensor([0]))  # (1 - 1/2)² log 2
        tensor([0.1733])

    Paper: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 4, https://arxiv.org/abs/1708.02002.

    Differs from the paper: a softmax over the classes instead of a sigmoid for each, which is
    :func:`~lightning_objectives.losses.sigmoid_focal_loss`.
    """
    _check(gamma, class_weights)
    log_p = log_probabilities(logits, target)
    if class_weights is None:
        return of_target(lambda x: _modulated(x, gamma), target, log_p)
    alpha = by_class(class_weights, logits, "class_weights").to(log_p, non_blocking=True)
    return of_target(lambda x, a: a * _modulated(x, gamma), target, log_p, alpha.expand_as(log_p))


def _modulated(log_p: Tensor, gamma: float) -> Tensor:
    # The slope of x ** gamma at 0 is infinite for gamma < 1, and 0 * inf is NaN.
    wrong = -torch.expm1(log_p).clamp_max(-torch.finfo(log_p.dtype).tiny)
    return wrong**gamma * -log_p


def _check(gamma: float, class_weights: Sequence[float] | None) -> None:
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma={gamma} must be >= 0 and finite; 0 is cross entropy.")
    for place, weight in enumerate(() if class_weights is None else class_weights):
        if not 0 <= weight < float("inf"):
            raise ValueError(f"class_weights[{place}]={weight} must be >= 0 and finite.")


class FocalLoss(Loss):
    r"""Down-weights samples that the network already gets right, so that training works on the hard ones.

    The losses are those of :func:`focal_loss`.

    Args:
        gamma: :math:`\gamma \ge 0`; the paper's best is 2.
        class_weights: one weight for each class; None for 1.

    Raises:
        ValueError: a setting outside its range.

    When to use: if there are many easy samples and few hard ones. Not with noisy labels: the hard samples are then the
    mislabelled ones.
    Cost: that of cross entropy.
    Interactions: the probabilities are pulled towards the middle (to 0.6 where 0.7 is true, at gamma 1 and 2), so
    calibrate them afterwards. Class weights of the replaced criterion are lost; pass ``class_weights``.

    Example:
        >>> import torch
        >>> FocalLoss(gamma=0.0)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(focal_loss)
    family = "easy samples"
    problems = ("classes",)

    def __init__(self, *, gamma: float = 2.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        _check(gamma, class_weights)
        self.gamma = gamma
        self.class_weights = None if class_weights is None else tuple(class_weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return focal_loss(logits, target, gamma=self.gamma, class_weights=self.class_weights)
