"""Symmetric cross entropy."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import expected, log_probabilities


def symmetric_cross_entropy_loss(
    logits: Tensor, target: Tensor, *, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0
) -> Tensor:
    r"""Compute the cross entropy and the reverse one, which is robust to wrong labels.

    .. math::
        \ell = \alpha \sum_k -q_k \log p_k + \beta \sum_k -p_k \max(\log q_k, A)

    with :math:`q` the target. For a single class the second sum is :math:`-A (1 - p_y)`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities.
        alpha: :math:`\alpha \ge 0`, the weight of the cross entropy.
        beta: :math:`\beta \ge 0`, the weight of the reverse cross entropy; 0 leaves cross entropy.
        log_zero: :math:`A < 0`, in place of :math:`\log 0`.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> import torch
        >>> symmetric_cross_entropy_loss(torch.zeros(1, 2), torch.tensor([0]))  # 0.1 log 2 + 4 / 2
        tensor([2.0693])

    Paper: Wang et al., Symmetric Cross Entropy for Robust Learning with Noisy Labels, ICCV 2019,
    https://arxiv.org/abs/1908.06112.

    Differs from the authors' code: it clips the target at 1e-4, which is ``log_zero=-9.21``, and the probabilities at
    1e-7, so that the samples that are most wrong have no gradient. Here nothing is clipped.
    """
    _check(alpha, beta, log_zero)
    log_p = log_probabilities(logits, target)
    if target.is_floating_point():
        reverse = -(log_p.exp() * target.to(log_p.dtype).log().clamp_min(log_zero)).sum(1)
    else:
        reverse = log_zero * torch.expm1(expected(log_p, target))
    return alpha * -expected(log_p, target) + beta * reverse


def _check(alpha: float, beta: float, log_zero: float) -> None:
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} must be >= 0 and finite.")
    if not -float("inf") < log_zero < 0:
        raise ValueError(f"log_zero={log_zero} must be < 0 and finite: it stands for the logarithm of 0.")


class SymmetricCrossEntropyLoss(Loss):
    r"""Makes training robust to noisy labels by adding the reverse cross entropy, while cross entropy still learns.

    The losses are those of :func:`symmetric_cross_entropy_loss`.

    Args:
        alpha: the weight of the cross entropy: smaller values fit wrong labels less.
        beta: the weight of the reverse cross entropy.
        log_zero: :math:`A`. The default is the value that is cited for the paper; the authors' code has -9.21.

    Raises:
        ValueError: a setting outside its range.

    When to use: if a good part of the labels is wrong. The authors' code has ``alpha`` and ``beta`` of 0.1 and 1 for
    CIFAR-10, 6 and 0.1 for CIFAR-100, 0.01 and 1 for MNIST: many classes need more of the cross entropy.
    Cost: that of cross entropy.
    Interactions: class weights of the replaced criterion are lost. Calibrate the probabilities afterwards.

    Example:
        >>> import torch
        >>> SymmetricCrossEntropyLoss(alpha=1.0, beta=0.0)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(symmetric_cross_entropy_loss)
    family = "label noise"
    problems = ("classes",)

    def __init__(self, *, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0) -> None:
        super().__init__()
        _check(alpha, beta, log_zero)
        self.alpha = alpha
        self.beta = beta
        self.log_zero = log_zero

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        settings = {"alpha": self.alpha, "beta": self.beta, "log_zero": self.log_zero}
        return symmetric_cross_entropy_loss(logits, target, **settings)
