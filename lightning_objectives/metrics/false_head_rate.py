"""How often rare classes are taken for frequent ones."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.metrics._rows import check_pairs
from lightning_objectives.metrics._sums import SumMetric


def false_head_rate(preds: Tensor, target: Tensor, *, counts: Sequence[float], head_share: float = 0.5) -> Tensor:
    r"""Compute the share of the samples of tail classes that are predicted as a head class.

    .. math::
        \frac{|\{i : y_i \in T, \hat y_i \in H\}|}{|\{i : y_i \in T\}|}

    with the head H, the most frequent classes, and the tail T, all others.

    Args:
        preds: (N, C) scores: logits or probabilities, whose order is the same.
        target: (N,) class indices, or (N, C) float class probabilities, which count by their mass on the tail.
        counts: the number of training samples of each class.
        head_share: the part of the classes that are the head, rounded to whole classes. Of classes with equal counts
            the first are in the head.

    Returns:
        () float32 in [0, 1]; NaN without a sample of a tail class, or with a NaN prediction of one.

    Raises:
        ValueError: shapes that do not fit, counts of another number of classes, or a head without a class or a tail.

    Example:
        >>> preds = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.8, 0.1, 0.1]])
        >>> false_head_rate(preds, torch.tensor([1, 1, 2, 0]), counts=(9, 3, 1), head_share=0.3)  # a head of one
        tensor(0.3333)

    Paper: Li and Zhang, Long-tailed Classification from a Bayesian-decision-theory Perspective, 2023,
    https://arxiv.org/abs/2303.06075. The formula is that of the authors' code.

    Differs from the authors' code: the classes need not be sorted by their counts; soft targets.
    """
    check_pairs(preds, target)
    false, tail = _masses(preds, target, _head(counts, head_share), counts)
    return (false.sum(dtype=torch.float64) / tail.sum(dtype=torch.float64)).float()


def _masses(preds: Tensor, target: Tensor, head: Tensor, counts: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(N,) the mass of each row on the tail if it is predicted as a head class, else 0; and its mass on the tail."""
    if preds.shape[1] != len(head):
        raise ValueError(
            f"counts of {len(head)} classes do not fit preds of the shape {tuple(preds.shape)}. Pass one number for "
            "each class, in the order of the predictions."
        )
    head = head.to(preds.device, non_blocking=True)
    tail = (target * ~head).sum(1) if target.is_floating_point() else (~head)[target.long()].to(preds.dtype)
    false = torch.where(head[preds.argmax(1)], tail, 0.0)
    return torch.where(preds.amax(1).isnan() & (tail > 0), torch.nan, false), tail


def _head(counts: Sequence[float], head_share: float) -> Tensor:
    """(C,) which classes are the head."""
    if not all(number >= 0 for number in counts):
        raise ValueError(f"counts={tuple(counts)} must be >= 0: count the training samples of each class.")
    classes = len(counts)
    number = int(classes * head_share + 0.5) if 0 < head_share < 1 else 0
    if not 0 < number < classes:
        raise ValueError(
            f"head_share={head_share} of {classes} classes must leave one class or more in the head, and one in the "
            "tail."
        )
    head = {*sorted(range(classes), key=lambda k: -counts[k])[:number]}
    return torch.tensor([k in head for k in range(classes)])


class FalseHeadRate(SumMetric):
    """Measures how often a sample of a rare class is taken for a frequent one, which a long tail makes likely.

    The value is that of :func:`false_head_rate` over all rows of all batches and ranks.

    Args:
        counts: the number of training samples of each class, in the order of the predictions.
        head_share: the part of the classes that are the head.
        from_logits: whether predictions are logits or probabilities. This decides on which side of 0 or 0.5 the classes
            of a single column lie, and whether rows are checked to sum to 1.
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: a negative count, or a head without a class or a tail; in ``update``, if shapes do not fit; in
            ``compute``, if class indices, probabilities or soft targets are invalid.

    Shapes of ``update``: preds (N, C, ...) and target (N, ...) int or (N, C, ...) float, where every position is a row.
    For two classes preds may be (N,) or (N, 1, ...), with the second class's logit or probability.

    When to use: beside the accuracy, for long-tailed classes in which to miss a rare class is the worse error. The
    paper takes heads of 25, 50 and 75 % of the classes, and their mean.
    Cost: one comparison with each row; four numbers of state.
    Interactions: a network that always predicts a tail class has the best value, so never use it alone.

    Example:
        >>> metric = FalseHeadRate(counts=(100, 10, 1), head_share=0.3)
        >>> metric.update(torch.tensor([[9.0, 1.0, 0.0], [1.0, 9.0, 0.0]]), torch.tensor([1, 1]))
        >>> metric.compute()
        tensor(0.5000)

    Paper: Li and Zhang, Long-tailed Classification from a Bayesian-decision-theory Perspective, 2023,
    https://arxiv.org/abs/2303.06075.
    """

    function = staticmethod(false_head_rate)
    example: ClassVar[dict[str, Any]] = {"counts": (100, 10, 1)}
    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(
        self,
        *,
        counts: Sequence[float],
        head_share: float = 0.5,
        from_logits: bool = True,
        ignore_index: int | None = -100,
    ) -> None:
        head = _head(counts, head_share)
        settings = f"{head.nonzero().flatten().tolist()}"
        super().__init__(from_logits=from_logits, ignore_index=ignore_index, settings=settings)
        self.counts = tuple(counts)
        self.head_share = head_share
        self.register_buffer("head", head, persistent=False)
        for name in ("false", "tail"):
            self._add_sum(name, torch.tensor(0.0, dtype=torch.float64))

    head: Tensor

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch; shapes as in the class. Never waits for the device."""
        rows = self._rows(preds, target)
        false, tail = _masses(rows.preds, rows.target, self.head, self.counts)
        dtype = self._sum("tail").dtype
        false, tail = (torch.where(rows.kept, value, 0.0).sum(dtype=dtype) for value in (false, tail))
        self._add_rows(rows, false=false, tail=tail)

    def compute(self) -> Tensor:
        """The share over all rows that count, () float32."""
        self._check_rows()
        return (self._sum("false") / self._sum("tail")).float()
