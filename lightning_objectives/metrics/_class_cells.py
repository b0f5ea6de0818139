"""Sums of the rows in cells of the probability of each class, for calibration errors of all classes."""

import torch
from torch import Tensor

from lightning_objectives.metrics._rows import probabilities
from lightning_objectives.metrics._sums import WITHOUT_FLOAT64, SumMetric
from lightning_objectives.metrics.calibration_error import Bins


def class_cells(preds: Tensor, target: Tensor, kept: Tensor, edges: Tensor, *, from_logits: bool) -> Bins:
    """(R, C) predictions, their target, which rows count, and the inner edges of the cells -> totals (C, cells)."""
    p = probabilities(preds.detach(), from_logits=from_logits)
    dtype = torch.float32 if p.device.type in WITHOUT_FLOAT64 else torch.float64
    classes, cells = p.shape[1], len(edges) + 1
    cell = torch.bucketize(p.contiguous(), edges.to(p))  # NaN falls into the last one
    place = (cell + cells * torch.arange(classes, device=p.device)).flatten()

    def total(values: Tensor) -> Tensor:
        values = torch.where(kept[:, None], values, 0.0).to(dtype)
        return values.new_zeros(classes * cells).scatter_add_(0, place, values.flatten()).view(classes, cells)

    true = target if target.is_floating_point() else torch.zeros_like(p).scatter(1, target.long()[:, None], 1.0)
    return Bins(total(torch.ones_like(p)), total(p), total(true))


def mean_gap(bins: Bins) -> Tensor:
    """The distance between probability and rate in (C, B) bins, weighted by their rows; () float32, NaN without one."""
    rows = bins.rows.sum(-1).amax()
    return ((bins.accuracy - bins.confidence).abs().sum(-1) / rows).mean().float()


class ClassCells(SumMetric):
    """Keeps the totals of the cells of each class; the first batch shows how many classes there are."""

    edges: Tensor

    def __init__(self, edges: Tensor, *, from_logits: bool, ignore_index: int | None, settings: str) -> None:
        super().__init__(from_logits=from_logits, ignore_index=ignore_index, settings=settings)
        self.register_buffer("edges", edges, persistent=False)
        for name in Bins._fields:
            self._add_sum(name, torch.zeros((), dtype=torch.float64))

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch; shapes as in the class. Never waits for the device."""
        rows = self._rows(preds, target)
        known, classes = self._sum("rows").shape, rows.preds.shape[1]
        if known and known[0] != classes:
            raise ValueError(
                f"preds of the shape {tuple(preds.shape)} have {classes} classes, but those before had {known[0]}. Use "
                f"one {type(self).__name__} for each."
            )
        cells = class_cells(rows.preds, rows.target, rows.kept, self.edges, from_logits=self.from_logits)
        self._add_rows(rows, **cells._asdict())

    def merged(self, cells: Bins) -> Bins:
        """(C, cells) totals -> (C, B) totals; the cells themselves, unless a subclass merges them."""
        return cells

    def compute(self) -> Tensor:
        """The calibration error of all rows that count, () float32."""
        self._check_rows()
        if not self._sum("rows").dim():  # before the first batch
            return torch.full((), torch.nan, device=self.device)
        return mean_gap(self.merged(Bins(*(self._sum(name) for name in Bins._fields)))).to(self.device)
