"""Brier score: the squared distance of the predicted to the true probabilities."""

import torch
from torch import Tensor

from lightning_objectives.metrics._rows import check_pairs, probabilities
from lightning_objectives.metrics._sums import MeanMetric


def brier_score(preds: Tensor, target: Tensor, *, from_logits: bool = True) -> Tensor:
    r"""Compute the Brier score :math:`\sum_c (p_c - q_c)^2` of each row, in [0, 2].

    Args:
        preds: (N, C) logits or probabilities :math:`p`; half precision is computed in float32.
        target: (N,) class indices, for which :math:`q` is one-hot, or (N, C) float class probabilities :math:`q`.
        from_logits: whether ``preds`` are logits or probabilities.

    Returns:
        (N,) values; NaN predictions give NaN.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> brier_score(torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([0]), from_logits=False)  # .3² + .2² + .1²
        tensor([0.1400])
    """
    check_pairs(preds, target)
    p = probabilities(preds, from_logits=from_logits)
    if target.is_floating_point():
        return (p - target).square().sum(1)
    return p.scatter_add(1, target.long()[:, None], -torch.ones_like(p[:, :1])).square().sum(1)


class BrierScore(MeanMetric):
    """Measures calibration and sharpness together, by the squared distance of the predicted to the true probabilities.

    It is the mean of :func:`brier_score` over all rows: Brier's own definition, a sum over all classes.

    Args:
        from_logits: whether predictions are logits or probabilities; never guessed from their range.
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: in ``update``, if shapes do not fit; in ``compute``, if class indices, probabilities or soft targets
            are invalid.

    Shapes of ``update``: preds (N, C, ...) and target (N, ...) int or (N, C, ...) float, where every position is a row.
    For two classes preds may be (N,) or (N, 1, ...), with the second class's logit or probability.

    When to use: as a bounded proper score of calibration and sharpness together, beside the unbounded likelihood.
    Cost: one softmax; three numbers of state, sums in float64 (float32 on devices without it).
    Interactions: for two classes it is twice the :math:`(p - y)^2` that scikit-learn calls Brier score.

    Example:
        >>> metric = BrierScore(from_logits=False)
        >>> metric.update(torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]]), torch.tensor([0, 0]))
        >>> metric.compute()  # (0.14 + 2) / 2
        tensor(1.0700)

    Paper: Brier, Verification of Forecasts Expressed in Terms of Probability, Monthly Weather Review, 1950, equation 2,
    https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """

    function = staticmethod(brier_score)
    is_differentiable = True
    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 2.0

    def __init__(self, *, from_logits: bool = True, ignore_index: int | None = -100) -> None:
        super().__init__(from_logits=from_logits, ignore_index=ignore_index)

    def values(self, preds: Tensor, target: Tensor) -> Tensor:
        """(R, C) predictions and their target -> (R,) values."""
        return brier_score(preds, target, from_logits=self.from_logits)
