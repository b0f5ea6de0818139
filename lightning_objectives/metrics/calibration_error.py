"""Calibration error of the predicted class, in constant memory."""

from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_objectives.metrics._numpy_cells import numpy_cells
from lightning_objectives.metrics._rows import check_pairs, probabilities
from lightning_objectives.metrics._sums import WITHOUT_FLOAT64, SumMetric

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

Norm = Literal["l1", "l2", "max"]
Binning = Literal["equal_width", "equal_mass"]
CELLS = 8192
"""The number of cells in the histogram from which bins of equal mass are made."""


class Bins(NamedTuple):
    """Holds the (B,) float64 totals of the rows in each bin, in the order of rising confidence."""

    rows: Tensor
    confidence: Tensor
    accuracy: Tensor


def calibration_error(
    preds: Tensor,
    target: Tensor,
    *,
    norm: Norm = "l1",
    num_bins: int = 15,
    binning: Binning = "equal_width",
    from_logits: bool = True,
) -> Tensor:
    r"""Compute the distance between confidence in the predicted class and its accuracy, over bins of like confidence.

    Row n has the confidence :math:`c_n = \max_j p_{nj}` and the accuracy :math:`a_n` (1 if the target is the predicted
    class, else 0). Bin :math:`b` holds :math:`n_b` of the N rows. With the means of each bin,

    .. math::
        g_b = |\bar a_b - \bar c_b|, \qquad
        \ell_1 = \sum_b \tfrac{n_b}{N} g_b, \quad
        \ell_2 = \sqrt{\textstyle \sum_b \tfrac{n_b}{N} g_b^2}, \quad
        \max = \max_{b: n_b > 0} g_b

    Args:
        preds: (N, C) logits or probabilities; half precision is computed in float32.
        target: (N,) class indices, or (N, C) float class probabilities: the accuracy of a row is then the target's mass
            on the predicted class.
        norm: ``l1`` the expected (ECE), ``l2`` the root mean square, ``max`` the maximum calibration error.
        num_bins: B >= 1.
        binning: ``equal_width`` :math:`((b - 1) / B, b / B]`, where an edge is the number nearest to :math:`b / B` in
            the float type of the computation, or ``equal_mass`` with N / B rows in each bin. Bins of
            equal mass come from a histogram of 8192 cells, of equal width in the logit of the confidence (at most 0.001
            of confidence, finer towards 0 and 1). A cell on the border of two bins is divided between them in
            proportion, as if all its rows were alike. So equal confidences are never told apart by their order.
        from_logits: whether ``preds`` are logits or probabilities.

    Returns:
        () float32 in [0, 1]; NaN without rows or with NaN predictions.

    Raises:
        ValueError: shapes that do not fit, an unknown norm or binning, or ``num_bins`` < 1.

    Example:
        >>> preds = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> calibration_error(preds, torch.tensor([0, 1, 1]), num_bins=2, from_logits=False)  # |2 - 2.4| / 3
        tensor(0.1333)

    Paper: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015,
    https://ojs.aaai.org/index.php/AAAI/article/view/9602; bins as in Guo et al., ICML 2017, equation 3,
    https://arxiv.org/abs/1706.04599; bins of equal mass: Nixon et al., 2019, https://arxiv.org/abs/1904.01685.

    Differs from the paper: soft targets; the histogram behind bins of equal mass.
    """
    check_pairs(preds, target)
    _check(norm, num_bins, binning)
    confidence, accuracy = _top_label(preds, target, from_logits=from_logits)
    cells = _histogram(
        confidence, accuracy, torch.ones_like(confidence, dtype=torch.bool), _edges(num_bins, binning).to(confidence)
    )
    return _distance(_bins(cells, num_bins, binning), norm).to(preds.device)


def _check(norm: str, num_bins: int, binning: str) -> None:
    if norm not in ("l1", "l2", "max"):
        raise ValueError(f"norm={norm!r} must be 'l1', 'l2' or 'max'.")
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins} must be >= 1.")
    if binning not in ("equal_width", "equal_mass"):
        raise ValueError(f"binning={binning!r} must be 'equal_width' or 'equal_mass'.")


def _top_label(preds: Tensor, target: Tensor, *, from_logits: bool) -> tuple[Tensor, Tensor]:
    p = probabilities(preds.detach(), from_logits=from_logits)
    confidence, predicted = p.max(1)  # the first of equal ones
    if target.is_floating_point():
        return confidence, target.gather(1, predicted[:, None]).squeeze(1)
    return confidence, (predicted == target).to(p.dtype)


def _edges(num_bins: int, binning: Binning) -> Tensor:
    """The inner edges of the cells; a cell holds its upper edge."""
    if binning == "equal_width":
        # A division gives the number nearest to k / B. `linspace` multiplies, and may fall one step below it.
        return torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    return torch.linspace(-16, 16, CELLS + 1, dtype=torch.float64)[1:-1].sigmoid()


@cache
def _float32_edges(num_bins: int, binning: Binning) -> "NDArray[np.float32]":
    return _edges(num_bins, binning).float().numpy()


def _histogram(confidence: Tensor, accuracy: Tensor, kept: Tensor, edges: Tensor) -> Bins:
    cell = torch.bucketize(confidence, edges.to(confidence.dtype))  # NaN falls into the last one
    dtype = torch.float32 if kept.device.type in WITHOUT_FLOAT64 else torch.float64

    def total(values: Tensor) -> Tensor:
        values = torch.where(kept, values, 0.0).to(dtype)
        return values.new_zeros(len(edges) + 1).scatter_add_(0, cell, values)

    return Bins(total(kept), total(confidence), total(accuracy))


def _bins(cells: Bins, num_bins: int, binning: Binning) -> Bins:
    """Merge cells into bins, on the CPU: a cumulative sum is not deterministic on every other device."""
    cells = Bins(*(values.cpu().double() for values in cells))
    if binning == "equal_width":
        return cells
    rows = cells.rows.cumsum(0)
    borders = torch.arange(1, num_bins + 1) * rows[-1] / num_bins
    cell = torch.searchsorted(rows, borders)  # the cell that the border falls into,
    above = (rows[cell] - borders) / cells.rows[cell]  # and the part of that cell that belongs to the next bin
    totals = (values.cumsum(0)[cell] - above * values[cell] for values in cells)
    return Bins(*(values.diff(prepend=values.new_zeros(1)) for values in totals))


def _distance(bins: Bins, norm: Norm) -> Tensor:
    filled = bins.rows > 0
    share = bins.rows / bins.rows.sum()
    gap = torch.where(filled, (bins.accuracy - bins.confidence).abs() / bins.rows, 0.0)
    if norm == "l1":
        return (share * gap).sum().float()
    if norm == "l2":
        return (share * gap.square()).sum().sqrt().float()
    return torch.where(filled.any(), gap.max(), torch.nan).float()


class CalibrationError(SumMetric):
    """Measures how far probabilities can be trusted: the distance between confidence and accuracy.

    The value is that of :func:`calibration_error` over all rows of all batches and ranks.

    Args:
        norm: ``l1`` (ECE), ``l2`` or ``max``.
        num_bins: number of bins B.
        binning: ``equal_width``, or ``equal_mass``, which spends no bins where there are no rows.
        from_logits: whether predictions are logits or probabilities; never guessed from their range.
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: an unknown norm or binning, ``num_bins`` < 1; in ``update``, if shapes do not fit; in ``compute``,
            if class indices, probabilities or soft targets are invalid.

    Shapes of ``update``: preds (N, C, ...) and target (N, ...) int or (N, C, ...) float, where every position is a row.
    For two classes preds may be (N,) or (N, 1, ...), with the second class's logit or probability. The confidence is
    that of the predicted class there too, so at least 0.5.

    When to use: to know how far probabilities can be trusted. Compare models with the same bins and at least some
    thousand rows, because few rows in a bin make any model look worse (bias upwards). Use ``equal_mass`` for confident
    models.
    Cost: one softmax and a search in the edges. The state takes 24 bytes per bin (``equal_width``) or 192 KiB
    (``equal_mass``), however many rows there are. Sums are float64 and counts int64, so 40 million pixels are as exact
    as 40 (on devices without float64 the sums are float32).
    Interactions: label smoothing and mixed targets change what a confidence means. Soft targets are compared with their
    mass, not with their greatest class.

    Example:
        >>> metric = CalibrationError(num_bins=2, from_logits=False)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[0.3, 0.7]]), torch.tensor([1]))
        >>> metric.compute()
        tensor(0.1333)

    Paper: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599.
    """

    function = staticmethod(calibration_error)
    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    edges: Tensor

    def __init__(
        self,
        *,
        norm: Norm = "l1",
        num_bins: int = 15,
        binning: Binning = "equal_width",
        from_logits: bool = True,
        ignore_index: int | None = -100,
    ) -> None:
        _check(norm, num_bins, binning)
        # Norms of the same bins may share them.
        super().__init__(from_logits=from_logits, ignore_index=ignore_index, settings=f"{num_bins}_{binning}")
        self.norm: Norm = norm
        self.num_bins = num_bins
        self.binning: Binning = binning
        self.register_buffer("edges", _edges(num_bins, binning), persistent=False)
        cells = len(self.edges) + 1
        self._add_sum("rows", torch.zeros(cells, dtype=torch.int64))
        self._add_sum("confidence", torch.zeros(cells, dtype=torch.float64))
        self._add_sum("accuracy", torch.zeros(cells, dtype=torch.float64))

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch; shapes as in the class. Never waits for the device."""
        edges = _float32_edges(self.num_bins, self.binning)
        sums = numpy_cells(preds, target, edges, from_logits=self.from_logits, ignore_index=self.ignore_index)
        if sums is not None:
            self._add(count=preds.shape[0], **dict(zip(Bins._fields, sums)))
            return
        rows = self._rows(preds, target)
        confidence, accuracy = _top_label(rows.preds, rows.target, from_logits=self.from_logits)
        cells = _histogram(confidence, accuracy, rows.kept, self.edges)
        self._add_rows(rows, rows=cells.rows.long(), confidence=cells.confidence, accuracy=cells.accuracy)

    def compute(self) -> Tensor:
        """Compute the calibration error of all rows that count, () float32."""
        return _distance(self._merged(), self.norm).to(self.device)

    def bins(self) -> Bins:
        """Compute the totals of the bins over all ranks; call it on each rank."""
        with self.sync_context(process_group=self.process_group):
            return self._merged()

    def _merged(self) -> Bins:
        self._check_rows()
        cells = Bins(self._sum("rows"), self._sum("confidence"), self._sum("accuracy"))
        return _bins(cells, self.num_bins, self.binning)

    def plot(self, val: Any = None, ax: "Axes | None" = None) -> Any:
        """Draw a reliability diagram: accuracy over confidence by bin, with the share of rows below.

        Args:
            val: a value or a series of values to draw over time instead, as torchmetrics' own ``plot`` does.
            ax: axes to draw into; None makes a figure.

        Returns:
            Figure and axes.

        Raises:
            ModuleNotFoundError: without matplotlib, which is in the extra ``plots``.
        """
        if val is not None:
            return self._plot(val, ax)
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("plot() needs matplotlib: pip install 'lightning-objectives[plots]'.") from error
        bins = self.bins()
        filled = bins.rows > 0
        rows, confidence, accuracy = (values[filled].numpy() for values in bins)
        confidence, accuracy, share = confidence / rows, accuracy / rows, rows / rows.sum()
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        axes.plot([0, 1], [0, 1], linestyle="--", color="gray", label="calibrated")
        axes.vlines(confidence, confidence, accuracy, color="tab:red", linewidth=3, alpha=0.6, label="gap")
        axes.plot(confidence, accuracy, marker="o", color="tab:blue", label="accuracy")
        axes.bar(confidence, share, width=0.02, color="tab:blue", alpha=0.25, label="share of rows")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        axes.set_title(f"calibration error ({self.norm}, {self.binning}) {float(_distance(bins, self.norm)):.4f}")
        # Below the axes, where it covers nothing.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize="small")
        return figure, axes
