"""Bi-tempered logistic loss."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._slopes import with_slopes
from lightning_objectives.losses._targets import shares, wide
from lightning_objectives.shapes import check_classes, check_shapes

_STEPS = 10
"""Newton's steps: enough for ten thousand classes at temperatures from 0.3 to 4."""


def tempered_softmax(logits: Tensor, *, temperature: float = 1.2) -> Tensor:
    r"""Compute probabilities with a heavier or lighter tail than those of the softmax.

    .. math::
        p_k = \exp_t(z_k - \lambda), \qquad \exp_t(x) = \max(1 + (1 - t) x, 0)^{1 / (1 - t)}

    with the :math:`\lambda` for which they sum to 1.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        temperature: :math:`t > 0`. 1 is the softmax; above 1 the tail is heavy; below 1 far classes have exactly 0.

    Returns:
        (N, C) probabilities, without gradient.

    Raises:
        ValueError: a wrong shape, fewer than two classes, or a ``temperature`` that is not positive.

    >>> tempered_softmax(torch.tensor([[2.0, 1.0, 0.1]]), temperature=1.2)
    tensor([[0.6007, 0.2619, 0.1374]])
    """
    check_shapes(logits=logits)
    check_classes(logits)
    _check(1.0, temperature)
    with torch.no_grad():
        return _log_probabilities(wide(logits), temperature).exp()


def bi_tempered_loss(logits: Tensor, target: Tensor, *, t1: float = 0.8, t2: float = 1.2) -> Tensor:
    r"""Compute a loss that is bounded for samples far on the wrong side, and gentler for those near the boundary.

    .. math::
        \ell = \sum_k q_k \left(\log_{t_1} q_k - \log_{t_1} p_k\right) - \frac{q_k^{2 - t_1} - p_k^{2 - t_1}}{2 - t_1},
        \qquad \log_t x = \frac{x^{1 - t} - 1}{1 - t}

    with :math:`q` the target and :math:`p` the :func:`tempered_softmax` at the temperature :math:`t_2`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities.
        t1: :math:`t_1 \in [0, 1]`; below 1 the loss is at most :math:`1 / (1 - t_1)` for a class.
        t2: :math:`t_2 > 0`; above 1 the probabilities have a heavy tail.

    Returns:
        (N,) losses >= 0, which are 0 where :math:`p = q`. At 1 and 1 it is the KL divergence from the target, which is
        cross entropy for classes. Their second derivative is refused.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> bi_tempered_loss(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([1]), t1=0.8, t2=1.2)
        tensor([1.0380])

    Paper: Amid et al., Robust Bi-Tempered Logistic Loss Based on Bregman Divergences, NeurIPS 2019,
    https://arxiv.org/abs/1906.03361.

    Differs from the authors' code: :math:`\lambda` is computed until it is exact. Five of their steps leave the
    probabilities of 1000 classes with a sum that is wrong by up to a quarter.
    """
    _check(t1, t2)
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    logits = wide(logits)
    q = shares(logits, target)
    with torch.no_grad():
        log_p = _log_probabilities(logits, t2)
        p = log_p.exp()
        # 0 * inf is NaN: a class without a share counts by its p alone, and one with p = 0 has no gradient.
        terms = torch.where(q == 0, 0.0, q * (_log(q.log(), t1) - _log(log_p, t1)))
        losses = (terms - (q ** (2 - t1) - p ** (2 - t1)) / (2 - t1)).sum(1)
        slopes = torch.where(p == 0, 0.0, (p - q) * ((t2 - t1) * log_p).exp())
        slopes = slopes - (t2 * log_p).softmax(1) * slopes.sum(1, keepdim=True)
    return with_slopes(logits, losses, slopes, "bi_tempered_loss")


def _log(log_x: Tensor, t: float) -> Tensor:
    """The tempered logarithm of x."""
    return log_x if t == 1 else torch.expm1((1 - t) * log_x) / (1 - t)


def _log_probabilities(logits: Tensor, t: float) -> Tensor:
    """Logarithms of the tempered softmax.

    The norm of the terms as a function of lambda is concave and rising (t > 1) or convex and falling (t < 1). So
    Newton's steps from the left never go too far.
    """
    if t == 1:
        return logits.log_softmax(1)
    logits = logits - logits.amax(1, keepdim=True)
    power = 1 / (1 - t)
    shift = torch.zeros_like(logits[:, :1])
    for _ in range(_STEPS):
        logs = torch.log1p(((1 - t) * (logits - shift)).clamp_min(-1))
        log_sum = (power * logs).logsumexp(1, keepdim=True)
        slope = ((power - 1) * logs).logsumexp(1, keepdim=True) + (1 / power - 1) * log_sum
        shift = shift + torch.expm1(log_sum / power) * power * (-slope).exp()
    return power * torch.log1p(((1 - t) * (logits - shift)).clamp_min(-1))


def _check(t1: float, t2: float) -> None:
    if not 0 <= t1 <= 1:
        raise ValueError(f"t1={t1} must be in [0, 1]; 1 is the logarithm.")
    if not 0 < t2 < float("inf"):
        raise ValueError(f"the temperature t2={t2} must be > 0 and finite; 1 is the softmax.")


class BiTemperedLoss(Loss):
    r"""Makes training robust to noisy labels and outliers: no sample costs more than a bound.

    The losses are those of :func:`bi_tempered_loss`.

    Args:
        t1: smaller values bound the loss more tightly, for labels that are wrong far from the boundary.
        t2: greater values have a heavier tail, for labels that are wrong near the boundary.

    Raises:
        ValueError: a setting outside its range.

    When to use: if labels are noisy. There is no default in the authors' code; the values cited for the paper, which we
    did not check, are 0.8 and 1.2, and 0.9 and 1.05 for ImageNet.
    Cost: about ten softmaxes of the logits, without gradient.
    Interactions: the network's probabilities are those of ``tempered_softmax``; the top class is the same. Class
    weights of the replaced criterion are lost.

    Example:
        >>> BiTemperedLoss(t1=1.0, t2=1.0)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(bi_tempered_loss)
    family = "label noise"
    problems = ("classes",)

    def __init__(self, *, t1: float = 0.8, t2: float = 1.2) -> None:
        super().__init__()
        _check(t1, t2)
        self.t1 = t1
        self.t2 = t2

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return bi_tempered_loss(logits, target, t1=self.t1, t2=self.t2)
