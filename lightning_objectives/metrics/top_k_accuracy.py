"""Top-k accuracy, for soft targets too."""

import torch
from torch import Tensor

from lightning_objectives.metrics._rows import check_pairs
from lightning_objectives.metrics._sums import MeanMetric


def top_k_accuracy(preds: Tensor, target: Tensor, *, k: int = 1) -> Tensor:
    r"""Compute the target's mass :math:`\sum_{c \in \mathrm{top}_k(p)} q_c` on the k best classes of each row.

    Args:
        preds: (N, C) scores: logits or probabilities, whose order is the same.
        target: (N,) class indices, whose mass is 1, or (N, C) float class probabilities :math:`q`.
        k: the number of classes; among equal scores the lower index is the better.

    Returns:
        (N,) float values in [0, 1]: for class indices 1 if the class is among the best k, else 0. NaN for a row with a
        NaN.

    Raises:
        ValueError: k is not in [1, C], or the shapes do not fit.

    Example:
        >>> scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 2.0]])
        >>> top_k_accuracy(scores, torch.tensor([1, 2]), k=2), top_k_accuracy(scores, torch.tensor([1, 2]))
        (tensor([1., 1.]), tensor([0., 0.]))
        >>> top_k_accuracy(scores[:1], torch.tensor([[0.6, 0.3, 0.1]]), k=2)
        tensor([0.9000])
    """
    check_pairs(preds, target)
    if not 1 <= k <= preds.shape[1]:
        raise ValueError(f"k={k} must be in [1, {preds.shape[1]}], the number of classes.")
    if target.is_floating_point():
        # A stable sort, because topk leaves open which of equal scores it takes.
        best = preds.sort(dim=1, descending=True, stable=True).indices[:, :k]
        mass = target.gather(1, best).sum(1)
    else:
        target = target.long()
        own, index = preds.gather(1, target[:, None]), torch.arange(preds.shape[1], device=preds.device)
        ahead = (preds > own) | ((preds == own) & (index < target[:, None]))
        mass = (ahead.count_nonzero(1) < k).float()  # several times faster than the sort
    return torch.where(preds.amax(1).isnan(), torch.nan, mass)


class TopKAccuracy(MeanMetric):
    """Measures how often the target is among the k classes with the highest scores.

    It is the mean of :func:`top_k_accuracy` over all rows: the micro average, in which every row weighs the same.

    Args:
        k: the number of classes.
        from_logits: whether predictions are logits or probabilities. This decides on which side of 0 or 0.5 the classes
            of a single column lie, and whether rows are checked to sum to 1.
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: k is not positive; in ``update``, if shapes do not fit, or k is above the number of classes; in
            ``compute``, if class indices, probabilities or soft targets are invalid.

    Shapes of ``update``: preds (N, C, ...) and target (N, ...) int or (N, C, ...) float, where every position is a row.
    For two classes preds may be (N,) or (N, 1, ...), with the second class's logit or probability.

    When to use: always beside a proper score; ``k=5`` if classes overlap.
    Cost: one comparison with each row, or a sort of each row for soft targets; three numbers of state, sums in float64
    (float32 on devices without it).
    Interactions: with mixed targets, the best value that can be reached at ``k=1`` is the mean of the greatest share.

    Example:
        >>> metric = TopKAccuracy(k=2)
        >>> metric.update(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([1, 2]))
        >>> metric.compute()
        tensor(0.5000)

    Paper: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015,
    https://arxiv.org/abs/1409.0575.

    Differs from the paper: soft targets count with their mass on the k classes.
    """

    function = staticmethod(top_k_accuracy)
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, k: int = 1, from_logits: bool = True, ignore_index: int | None = -100) -> None:
        if k < 1:
            raise ValueError(f"k={k} must be >= 1.")
        super().__init__(from_logits=from_logits, ignore_index=ignore_index, settings=f"{k}")
        self.k = k

    def values(self, preds: Tensor, target: Tensor) -> Tensor:
        """(R, C) predictions and their target -> (R,) values."""
        return top_k_accuracy(preds, target, k=self.k)
