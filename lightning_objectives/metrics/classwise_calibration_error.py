"""Calibration error of every class, in constant memory."""

import torch
from torch import Tensor

from lightning_objectives.metrics._class_cells import ClassCells, class_cells, mean_gap
from lightning_objectives.metrics._rows import check_pairs


def classwise_calibration_error(
    preds: Tensor, target: Tensor, *, num_bins: int = 15, from_logits: bool = True
) -> Tensor:
    r"""Compute the distance between the probability of a class and how often it is right, on average over all classes.

    .. math::
        \frac{1}{C} \sum_c \sum_b \frac{n_{bc}}{N}\, |\bar q_{bc} - \bar p_{bc}|

    Bin :math:`b` of class :math:`c` holds the :math:`n_{bc}` rows with :math:`p_c` in :math:`((b - 1) / B,\ b / B]`. Of
    these rows, :math:`\bar p_{bc}` is the mean of :math:`p_c` and :math:`\bar q_{bc}` the share that is of class c.

    Args:
        preds: (N, C) logits or probabilities :math:`p`; half precision is computed in float32.
        target: (N,) class indices, or (N, C) float class probabilities.
        num_bins: B >= 1.
        from_logits: whether ``preds`` are logits or probabilities.

    Returns:
        () float32 between 0 and 2 / C; NaN without rows or with NaN predictions.

    Raises:
        ValueError: shapes that do not fit, or ``num_bins`` < 1.

    Example:
        >>> preds = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> classwise_calibration_error(preds, torch.tensor([0, 1, 1]), num_bins=2, from_logits=False)
        tensor(0.3333)

    Paper: Kull et al., Beyond Temperature Scaling: Obtaining Well-Calibrated Multiclass Probabilities with Dirichlet
    Calibration, NeurIPS 2019, https://arxiv.org/abs/1910.12656.

    Differs from the paper: soft targets. Not checked at the source: which edge belongs to a bin.
    """
    check_pairs(preds, target)
    _check(num_bins)
    kept = torch.ones(len(preds), dtype=torch.bool, device=preds.device)
    return mean_gap(class_cells(preds, target, kept, _edges(num_bins), from_logits=from_logits))


def _check(num_bins: int) -> None:
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins} must be >= 1.")


def _edges(num_bins: int) -> Tensor:
    # A division gives the number nearest to k / B. `linspace` multiplies, and may fall one step below it.
    return torch.arange(1, num_bins, dtype=torch.float64) / num_bins


class ClasswiseCalibrationError(ClassCells):
    """Measures how far the probabilities of all classes can be trusted, not only those of the predicted one.

    The value is that of :func:`classwise_calibration_error` over all rows of all batches and ranks.

    Args:
        num_bins: number of bins B of each class.
        from_logits: whether predictions are logits or probabilities; never guessed from their range.
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: ``num_bins`` < 1; in ``update``, if shapes do not fit, or with other classes than before; in
            ``compute``, if class indices, probabilities or soft targets are invalid.

    Shapes of ``update``: preds (N, C, ...) and target (N, ...) int or (N, C, ...) float, where every position is a row.
    For two classes preds may be (N,) or (N, 1, ...), with the second class's logit or probability.

    When to use: if decisions use the probabilities of rare or second classes, for which ``CalibrationError`` is blind.
    Cost: one softmax and a search in the edges for each probability; 24 bytes of state for each bin and class.
    Interactions: it falls as 1 / C, because most classes have a probability near 0 in most rows. Compare it for one
    number of classes only; other libraries may give the sum over the classes, which is C times larger.

    Example:
        >>> metric = ClasswiseCalibrationError(num_bins=2, from_logits=False)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[0.3, 0.7]]), torch.tensor([1]))
        >>> metric.compute()
        tensor(0.3333)

    Paper: Kull et al., Beyond Temperature Scaling, NeurIPS 2019, https://arxiv.org/abs/1910.12656.
    """

    function = staticmethod(classwise_calibration_error)
    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, num_bins: int = 15, from_logits: bool = True, ignore_index: int | None = -100) -> None:
        _check(num_bins)
        settings = str(num_bins)
        super().__init__(_edges(num_bins), from_logits=from_logits, ignore_index=ignore_index, settings=settings)
        self.num_bins = num_bins
