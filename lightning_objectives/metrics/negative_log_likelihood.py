"""Negative log-likelihood of the target."""

import torch
from torch import Tensor

from lightning_objectives.metrics._rows import check_pairs
from lightning_objectives.metrics._sums import MeanMetric


def negative_log_likelihood(preds: Tensor, target: Tensor, *, from_logits: bool = True) -> Tensor:
    r"""Compute the negative log-likelihood :math:`-\sum_c q_c \log p_c` of each row, in nats.

    Args:
        preds: (N, C) logits or probabilities :math:`p`; half precision is computed in float32.
        target: (N,) class indices, or (N, C) float class probabilities :math:`q`.
        from_logits: whether ``preds`` are logits or probabilities.

    Returns:
        (N,) values >= 0. A value is infinite if a class with :math:`q_c > 0` has the probability 0; a class with
        :math:`q_c = 0` adds nothing, whatever its probability. NaN predictions give NaN.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> negative_log_likelihood(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0.6931, 2.1269])
    """
    check_pairs(preds, target)
    preds = preds if preds.dtype == torch.float64 else preds.float()
    # A NaN spoils its whole row, as in log_softmax.
    logs = preds.log_softmax(1) if from_logits else preds.log() + 0 * preds.sum(1, keepdim=True)
    if not target.is_floating_point():
        return -logs.gather(1, target.long()[:, None]).squeeze(1)
    return -torch.where(target == 0, 0.0, target * logs).sum(1)  # 0 log 0 is 0


class NegativeLogLikelihood(MeanMetric):
    """Measures how likely the targets are under the predictions: the cross-entropy with the data, in nats.

    It is the mean of :func:`negative_log_likelihood` over all rows.

    Args:
        from_logits: whether predictions are logits or probabilities; never guessed from their range.
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: in ``update``, if shapes do not fit; in ``compute``, if class indices, probabilities or soft targets
            are invalid.

    Shapes of ``update``: preds (N, C, ...) and target (N, ...) int or (N, C, ...) float, where every position is a row.
    For two classes preds may be (N,) or (N, 1, ...), with the second class's logit or probability.

    When to use: as the proper score that training itself lowers. One confident error can dominate it.
    Cost: one pass over the predictions; three numbers of state, sums in float64 (float32 on devices without it).
    Interactions: it equals the validation loss only of a plain cross-entropy (no class weights, no label smoothing).

    Example:
        >>> metric = NegativeLogLikelihood()
        >>> metric.update(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
        >>> metric.compute()  # (0.6931 + 2.1269) / 2
        tensor(1.4100)

    Paper: Good, Rational Decisions, Journal of the Royal Statistical Society B, 1952,
    https://doi.org/10.1111/j.2517-6161.1952.tb00104.x.
    """

    function = staticmethod(negative_log_likelihood)
    is_differentiable = True
    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, *, from_logits: bool = True, ignore_index: int | None = -100) -> None:
        super().__init__(from_logits=from_logits, ignore_index=ignore_index)

    def values(self, preds: Tensor, target: Tensor) -> Tensor:
        """(R, C) predictions and their target -> (R,) values."""
        return negative_log_likelihood(preds, target, from_logits=self.from_logits)
