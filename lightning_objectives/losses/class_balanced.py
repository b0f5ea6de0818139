"""Class-balanced loss."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._counts import by_class, check_counts
from lightning_objectives.losses._targets import expected, log_probabilities
from lightning_objectives.losses.sigmoid_focal import sigmoid_focal_loss

Base = Literal["softmax", "sigmoid", "focal"]


def class_balanced_weights(counts: Sequence[float], *, beta: float = 0.9999) -> Tensor:
    r"""Compute the weight of each class from its effective number of samples.

    .. math::
        w_k \propto \frac{1 - \beta}{1 - \beta^{n_k}}, \qquad \sum_k w_k = C

    Args:
        counts: :math:`n`, the number of training samples of each class.
        beta: :math:`\beta \in [0, 1]`; 0 gives equal weights, 1 gives :math:`w_k \propto 1 / n_k`.

    Returns:
        (C,) float64 weights.

    Raises:
        ValueError: a count that is not positive, or a ``beta`` outside [0, 1].

    >>> class_balanced_weights((100, 10, 1), beta=0.99)
    tensor([0.0422, 0.2800, 2.6777], dtype=torch.float64)
    """
    numbers = _check(counts, beta, 0.0)
    if not numbers:
        raise ValueError("counts=() hold no class: pass one number for each of two classes or more.")
    return _weights(torch.tensor(numbers, dtype=torch.float64), beta)


def class_balanced_loss(
    logits: Tensor,
    target: Tensor,
    *,
    counts: Sequence[float],
    beta: float = 0.9999,
    base: Base = "softmax",
    gamma: float = 2.0,
) -> Tensor:
    r"""Compute a loss times the weight of the target's class.

    .. math::
        \ell = w_y \, L(z, y)

    with the weights of :func:`class_balanced_weights`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; a sample of the latter has the expected weight.
        counts: :math:`n`, the number of training samples of each class.
        beta: :math:`\beta \in [0, 1]`.
        base: :math:`L`: ``softmax`` is cross entropy, ``sigmoid`` the binary cross entropies of all classes, ``focal``
            their :func:`~lightning_objectives.losses.sigmoid_focal_loss` without ``alpha``. The weight of a sample
            multiplies the terms of all classes.
        gamma: of the focal loss.

    Returns:
        (N,) losses. Sigmoid and focal ones are summed over the classes.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, counts of another number of classes, or a setting
            outside its range.

    Example:
        >>> import torch
        >>> class_balanced_loss(torch.zeros(1, 2), torch.tensor([1]), counts=(3, 1), beta=1.0)  # 1.5 log 2
        tensor([1.0397])

    Paper: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019,
    https://arxiv.org/abs/1901.05555.

    Differs from the paper: ``beta=1`` is allowed, as the limit.
    """
    counts = _check(counts, beta, gamma)
    if base not in ("softmax", "sigmoid", "focal"):
        raise ValueError(f"base={base!r} must be 'softmax', 'sigmoid' or 'focal'.")
    log_p = log_probabilities(logits, target)
    weights = _weights(by_class(counts, logits, "counts"), beta).to(log_p, non_blocking=True)
    if base == "softmax":
        losses = -expected(log_p, target)
    else:
        losses = sigmoid_focal_loss(logits, target, gamma=gamma if base == "focal" else 0.0, alpha=None)
    return expected(weights.expand_as(log_p), target) * losses


def _weights(counts: Tensor, beta: float) -> Tensor:
    log_beta = math.log(beta) if beta else -math.inf
    # 1 - β ** n would lose its digits where β ** n is near 1.
    weights = -1 / (torch.expm1(counts * log_beta) if beta < 1 else -counts)
    return weights * (len(counts) / weights.sum())


def _check(counts: Sequence[float], beta: float, gamma: float) -> tuple[float, ...]:
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta} must be in [0, 1]; 0 gives equal weights, 1 the inverse counts.")
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma={gamma} must be >= 0 and finite.")
    return check_counts(counts)


class ClassBalancedLoss(Loss):
    r"""Gives the samples of rare classes more weight, as far as more samples of a class would still be new.

    The losses are those of :func:`class_balanced_loss`.

    Args:
        counts: the number of training samples of each class, in the order of the logits.
        beta: :math:`\beta`; the paper tries 0.9, 0.99, 0.999 and 0.9999. About :math:`1 / (1 - \beta)` samples of a
            class are taken to hold all there is to learn.
        base: the loss that is weighted: ``softmax``, ``sigmoid`` or ``focal``.
        gamma: of the focal loss; the paper tries 0.5, 1 and 2.

    Raises:
        ValueError: a count that is not positive, or a setting outside its range.

    When to use: classes of different sizes. With very rare classes the few samples have great weights, so that
    training is less steady; ``LogitAdjustedLoss`` has no weights.
    Cost: that of the base.
    Interactions: the mean over a batch is not divided by the sum of the weights, as a criterion with ``weight=`` does.
    Do not combine with a balanced sampler. Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> ClassBalancedLoss(counts=(9, 3), beta=0.0)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(class_balanced_loss)
    family = "class imbalance"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"counts": (100, 10, 1)}

    def __init__(
        self, *, counts: Sequence[float], beta: float = 0.9999, base: Base = "softmax", gamma: float = 2.0
    ) -> None:
        super().__init__()
        self.counts = _check(counts, beta, gamma)
        if base not in ("softmax", "sigmoid", "focal"):
            raise ValueError(f"base={base!r} must be 'softmax', 'sigmoid' or 'focal'.")
        self.beta = beta
        self.base: Base = base
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return class_balanced_loss(logits, target, counts=self.counts, beta=self.beta, base=self.base, gamma=self.gamma)
