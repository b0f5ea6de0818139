"""Direct coverage optimisation: the loss of pass@N."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import log_probabilities, of_target


def pass_at_n_loss(logits: Tensor, target: Tensor, *, attempts: int) -> Tensor:
    r"""Compute the negative logarithm of the probability that at least one of N draws is right.

    .. math::
        \ell = -\log\left(1 - (1 - p_y)^N\right)

    Its gradient is that of cross entropy times :math:`N p (1 - p)^{N - 1} / (1 - (1 - p)^N)`, which is 1 for small
    :math:`p_y` and falls to 0 as :math:`p_y` passes about :math:`1 / N`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.
        attempts: :math:`N \ge 1`, the number of draws; 1 is cross entropy.

    Returns:
        (N,) losses >= 0.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or ``attempts`` below 1.

    Example:
        >>> import torch
        >>> pass_at_n_loss(torch.zeros(1, 2), torch.tensor([0]), attempts=2)  # -log 3/4
        tensor([0.2877])

    Paper: Chen et al., Rethinking Fine-Tuning when Scaling Test-Time Compute: Limiting Confidence Improves Mathematical
    Reasoning, 2025, https://arxiv.org/abs/2502.07154.

    Differs from the paper: the unit is a row of logits, such as a token. The paper's unit is the whole answer.
    """
    _check(attempts)
    return of_target(lambda x: _of_log_probability(x, math.log(attempts)), target, log_probabilities(logits, target))


def _of_log_probability(log_p: Tensor, log_n: float) -> Tensor:
    # With b = log(-log(1 - p)) and c = b + log N the loss is -log(1 - exp(-exp(c))). Below -10 both have a series,
    # whose next terms are below 1e-9. At p = 1 the slope is 0, but would be computed as 0 * inf.
    x = log_p.clamp_max(-torch.finfo(log_p.dtype).eps)
    b = torch.where(x < -10, x + x.exp() / 2, (-torch.log1p(-x.clamp_min(-10).exp())).log())
    c = b + log_n
    return torch.where(c < -10, c.exp() / 2 - c, -(-torch.expm1(-c.clamp_min(-10).exp())).log())


def _check(attempts: int) -> None:
    if not 1 <= attempts < float("inf"):
        raise ValueError(f"attempts={attempts} must be >= 1; 1 is cross entropy.")


class PassAtNLoss(Loss):
    """Trains a model that may answer several times: being sure is not rewarded once one of N answers would be right.

    The losses are those of :func:`pass_at_n_loss`.

    Args:
        attempts: the number of answers that the model may draw in the test.

    Raises:
        ValueError: ``attempts`` below 1.

    When to use: if the result is judged by the best of N draws (pass@N). Training longer with cross entropy makes the
    model sure, and pass@N falls.
    Cost: that of cross entropy.
    Interactions: a single draw is right less often, so this is not for a test with one answer. For a sequence of tokens
    it limits the confidence of each token, which is stricter than that of the answer. Class weights of the replaced
    criterion are lost.

    Example:
        >>> import torch
        >>> PassAtNLoss(attempts=1)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(pass_at_n_loss)
    family = "overconfidence"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"attempts": 8}

    def __init__(self, *, attempts: int) -> None:
        super().__init__()
        _check(attempts)
        self.attempts = attempts

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return pass_at_n_loss(logits, target, attempts=self.attempts)
