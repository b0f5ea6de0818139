"""Comp-sum losses."""

from typing import Any, ClassVar

from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import log_probabilities, of_target, power_loss


def comp_sum_loss(logits: Tensor, target: Tensor, *, tau: float) -> Tensor:
    r"""Compute a loss of the family that leads from the sum of exponentials to the mean absolute error.

    .. math::
        \ell = \frac{(1 + u)^{1 - \tau} - 1}{1 - \tau}, \qquad u = \sum_{k \ne y} e^{z_k - z_y} = \frac{1}{p_y} - 1

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.
        tau: :math:`\tau \in [0, 2]`. 0 is the sum of exponentials :math:`u`, 1 is cross entropy, between 1 and 2 is the
            generalized cross entropy at :math:`q = \tau - 1`, and 2 is :math:`1 - p_y`.

    Returns:
        (N,) losses. Below 1 they grow exponentially, to infinity in float32 where the target's class is about
        :math:`88 / (1 - \tau)` below the highest logit.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a ``tau`` outside [0, 2].

    Example:
        >>> import torch
        >>> comp_sum_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), tau=0.0)  # e
        tensor([2.7183])

    Paper: Mao, Mohri and Zhong, Cross-Entropy Loss Functions: Theoretical Analysis and Applications, ICML 2023,
    https://arxiv.org/abs/2304.07288.

    Differs from the paper: its adversarial form is a method of its own, ``SmoothAdversarialCompSumLoss``.
    """
    _check(tau)
    return of_target(lambda log_p: power_loss(log_p, tau - 1), target, log_probabilities(logits, target))


def _check(tau: float) -> None:
    if not 0 <= tau <= 2:
        raise ValueError(f"tau={tau} must be in [0, 2]; 1 is cross entropy, and 2 is 1 - p.")


class CompSumLoss(Loss):
    r"""Chooses by one number how hard the samples count that are most wrong: from exponential to bounded.

    The losses are those of :func:`comp_sum_loss`.

    Args:
        tau: :math:`\tau`: below 1 the worst samples count more than in cross entropy, above 1 less.

    Raises:
        ValueError: a ``tau`` outside [0, 2].

    When to use: to compare the whole family. With noisy labels take a value above 1; ``GeneralizedCrossEntropyLoss`` is
    that part with a threshold. Below 1 only with clean labels and small logits, and with clipped gradients.
    Cost: that of cross entropy.
    Interactions: other values than 1 change what the probabilities mean, so calibrate them afterwards. Class weights of
    the replaced criterion are lost.

    Example:
        >>> import torch
        >>> CompSumLoss(tau=1.0)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(comp_sum_loss)
    family = "tuned cross entropy"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"tau": 1.5}

    def __init__(self, *, tau: float) -> None:
        super().__init__()
        _check(tau)
        self.tau = tau

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return comp_sum_loss(logits, target, tau=self.tau)
