"""Multi-focal modifier loss."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._counts import by_class, check_counts
from lightning_objectives.losses._labels import asymmetric_terms
from lightning_objectives.losses._targets import wide
from lightning_objectives.shapes import check_shapes


def multi_focal_modifier_loss(
    logits: Tensor,
    target: Tensor,
    *,
    counts: Sequence[float],
    gamma_neg: float = 3.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    power: float = 1 / 6,
    stop_gradient: bool = False,
) -> Tensor:
    r"""Compute the asymmetric loss with a weight for each label, which is greater for rarer labels.

    .. math::
        \ell = \sum_k w_k \left[-t_k (1 - p_k)^{\gamma_+} \log p_k
        - (1 - t_k) \, \tilde p_k^{\gamma_- + w_k} \log (1 - \tilde p_k)\right], \qquad
        w_k = \left(1 - \log \frac{n_k}{n_{max}}\right)^{\beta}

    with :math:`p_k = \sigma(z_k)` and :math:`\tilde p_k = \max(p_k - m, 0)`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N, C) float labels in [0, 1], or (N,) int classes, which are labels of one class.
        counts: :math:`n`, the number of training samples that have each label.
        gamma_neg: :math:`\gamma_- \ge 0`.
        gamma_pos: :math:`\gamma_+ \ge 0`.
        clip: :math:`m \in [0, 1)`; negative labels with a smaller probability cost nothing.
        power: :math:`\beta \ge 0`; 0 gives the weight 1 to all, which is the asymmetric loss at
            :math:`\gamma_- + 1`.
        stop_gradient: whether no gradient flows through the powers of probabilities.

    Returns:
        (N,) losses, summed over the labels.

    Raises:
        ValueError: shapes that do not fit, counts of another number of labels, or a setting outside its range.

    Example:
        >>> import torch
        >>> multi_focal_modifier_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), counts=(5, 5))
        tensor([0.7177])

    Paper: Zhang et al., Learning in Imperfect Environment: Multi-Label Classification with Long-Tailed Distribution and
    Partial Labels (COMIC), ICCV 2023, https://arxiv.org/abs/2304.10539.

    Differs from the authors' code: the powers have a gradient, unless you stop it as the code does. The correction of
    missing labels and the heads of head and tail labels are not part of this loss.
    """
    counts = _check(counts, gamma_neg, gamma_pos, clip, power)
    check_shapes(logits=logits, target=target)
    numbers = by_class(counts, logits, "counts")
    logits = wide(logits)
    weights = ((1 - (numbers / numbers.amax()).log()) ** power).to(logits, non_blocking=True)
    settings = {"gamma_pos": gamma_pos, "clip": clip}
    terms = asymmetric_terms(logits, target, gamma_neg=gamma_neg + weights, **settings, stop_gradient=stop_gradient)
    return (weights * terms).sum(1)


def _check(counts: Sequence[float], gamma_neg: float, gamma_pos: float, clip: float, power: float) -> tuple[float, ...]:
    for name, value in (("gamma_neg", gamma_neg), ("gamma_pos", gamma_pos), ("power", power)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} must be >= 0 and finite.")
    if not 0 <= clip < 1:
        raise ValueError(f"clip={clip} must be in [0, 1), because it is a probability; 0 for none.")
    return check_counts(counts)


class MultiFocalModifierLoss(Loss):
    r"""Balances frequent and rare labels as well as present and absent ones.

    The losses are those of :func:`multi_focal_modifier_loss`.

    Args:
        counts: the number of training samples that have each label, in the order of the logits.
        gamma_neg: :math:`\gamma_-`; the authors' code uses 3 and 4.
        gamma_pos: :math:`\gamma_+`; the authors' code uses 0.
        clip: :math:`m`; the authors' code uses 0.05.
        power: :math:`\beta`; the authors' code uses 1/6, and 1/3 in another form.
        stop_gradient: whether no gradient flows through the powers; the authors' code stops it.

    Raises:
        ValueError: a count that is not positive, or a setting outside its range.

    When to use: several labels with a long tail. Without a long tail use ``AsymmetricLoss``.
    Cost: that of two binary cross entropies.
    Interactions: those of ``AsymmetricLoss``: losses are sums over the labels, and the probabilities need
    a calibration.

    Example:
        >>> import torch
        >>> MultiFocalModifierLoss(counts=(9, 3), power=0.0)(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor([0.7177])
    """

    function = staticmethod(multi_focal_modifier_loss)
    family = "class imbalance"
    problems = ("classes", "labels")
    example: ClassVar[dict[str, Any]] = {"counts": (100, 10, 1)}

    def __init__(
        self,
        *,
        counts: Sequence[float],
        gamma_neg: float = 3.0,
        gamma_pos: float = 0.0,
        clip: float = 0.05,
        power: float = 1 / 6,
        stop_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.counts = _check(counts, gamma_neg, gamma_pos, clip, power)
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.clip = clip
        self.power = power
        self.stop_gradient = stop_gradient

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N, C) labels or (N,) classes -> (N,) losses."""
        return multi_focal_modifier_loss(logits, target, **self.settings())
