"""Calibration error of every class over ranges that hold equally many rows, in constant memory."""

import torch
from torch import Tensor

from lightning_objectives.metrics._class_cells import ClassCells, class_cells, mean_gap
from lightning_objectives.metrics._rows import check_pairs
from lightning_objectives.metrics.calibration_error import Bins

CELLS = 2048
"""The number of cells of each class from which its ranges are made."""


def adaptive_calibration_error(
    preds: Tensor, target: Tensor, *, num_ranges: int = 15, from_logits: bool = True
) -> Tensor:
    r"""Compute the distance between probability and rate over ranges that hold equally many rows, for all classes.

    .. math::
        \frac{1}{C R} \sum_c \sum_r |\bar q_{rc} - \bar p_{rc}|

    Range :math:`r` of class :math:`c` holds N / R rows, in the order of :math:`p_c`. Of these rows, :math:`\bar p_{rc}`
    is the mean of :math:`p_c` and :math:`\bar q_{rc}` the share that is of class c.

    Args:
        preds: (N, C) logits or probabilities :math:`p`; half precision is computed in float32.
        target: (N,) class indices, or (N, C) float class probabilities.
        num_ranges: R >= 1. They come from a histogram of 2048 cells, of equal width in the logit of the probability (at
            most 0.004 of probability, finer towards 0 and 1). A cell on the border of two ranges is divided between
            them in proportion, as if all its rows were alike. So equal probabilities are never told apart by their
            order, and each range has exactly N / R rows.
        from_logits: whether ``preds`` are logits or probabilities.

    Returns:
        () float32 in [0, 1]; NaN without rows or with NaN predictions.

    Raises:
        ValueError: shapes that do not fit, or ``num_ranges`` < 1.

    Example:
        >>> preds = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
        >>> adaptive_calibration_error(preds, torch.tensor([0, 1, 1, 1]), num_ranges=2, from_logits=False)
        tensor(0.3500)

    Paper: Nixon et al., Measuring Calibration in Deep Learning, 2019, https://arxiv.org/abs/1904.01685.

    Differs from the paper: soft targets; the histogram behind the ranges. The paper's ranges
    are of whole rows, which is another number if there are only some rows in a range and R does not divide N.
    """
    check_pairs(preds, target)
    _check(num_ranges)
    kept = torch.ones(len(preds), dtype=torch.bool, device=preds.device)
    return mean_gap(_ranges(class_cells(preds, target, kept, _edges(), from_logits=from_logits), num_ranges)).to(
        preds.device
    )


def _check(num_ranges: int) -> None:
    if num_ranges < 1:
        raise ValueError(f"num_ranges={num_ranges} must be >= 1.")


def _edges() -> Tensor:
    return torch.linspace(-16, 16, CELLS + 1, dtype=torch.float64)[1:-1].sigmoid()


def _ranges(cells: Bins, num_ranges: int) -> Bins:
    """Merge (C, cells) totals into ranges, on the CPU: a cumulative sum is not deterministic on every other device."""
    cells = Bins(*(values.cpu().double() for values in cells))
    rows = cells.rows.cumsum(1)
    borders = torch.arange(1, num_ranges + 1) * rows[:, -1:] / num_ranges
    cell = torch.searchsorted(rows, borders)  # the cell that the border falls into,
    above = (rows.gather(1, cell) - borders) / cells.rows.gather(1, cell)  # and its part in the next range
    totals = (values.cumsum(1).gather(1, cell) - above * values.gather(1, cell) for values in cells)
    return Bins(*(values.diff(prepend=values.new_zeros(len(values), 1)) for values in totals))


class AdaptiveCalibrationError(ClassCells):
    """Measures how far the probabilities of all classes can be trusted, with no range that is almost empty.

    The value is that of :func:`adaptive_calibration_error` over all rows of all batches and ranks.

    Args:
        num_ranges: number of ranges R of each class.
        from_logits: whether predictions are logits or probabilities; never guessed from their range.
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: ``num_ranges`` < 1; in ``update``, if shapes do not fit, or with other classes than before; in
            ``compute``, if class indices, probabilities or soft targets are invalid.

    Shapes of ``update``: preds (N, C, ...) and target (N, ...) int or (N, C, ...) float, where every position is a row.
    For two classes preds may be (N,) or (N, 1, ...), with the second class's logit or probability.

    When to use: as ``ClasswiseCalibrationError``, with few rows or confident models, which leave most of its bins
    empty. For the predicted class alone use ``CalibrationError(binning="equal_mass")``, which other libraries call
    adaptive too.
    Cost: one softmax and a search in the edges for each probability; 48 KiB of state for each class.
    Interactions: with many classes most ranges have probabilities near 0, which are small errors; compare it for one
    number of classes only.

    Example:
        >>> metric = AdaptiveCalibrationError(num_ranges=2, from_logits=False)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[0.3, 0.7], [0.4, 0.6]]), torch.tensor([1, 1]))
        >>> metric.compute()
        tensor(0.3500)

    Paper: Nixon et al., Measuring Calibration in Deep Learning, 2019, https://arxiv.org/abs/1904.01685.
    """

    function = staticmethod(adaptive_calibration_error)
    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, num_ranges: int = 15, from_logits: bool = True, ignore_index: int | None = -100) -> None:
        _check(num_ranges)
        # Metrics with other numbers of ranges may share the cells.
        super().__init__(_edges(), from_logits=from_logits, ignore_index=ignore_index, settings="")
        self.num_ranges = num_ranges

    def merged(self, cells: Bins) -> Bins:
        """(C, cells) totals -> (C, R) totals."""
        return _ranges(cells, self.num_ranges)
