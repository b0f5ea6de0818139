"""A calibration histogram of the most usual batch in few calls: on the CPU these cost more than the numbers."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_objectives.metrics._rows import TOLERANCE, probabilities

MOST = 2**21
"""Predictions above which torch's several threads are faster."""


def plain_cells(
    preds: Tensor, target: Tensor, edges: NDArray[np.float32], *, from_logits: bool, ignore_index: int | None = None
) -> tuple[Tensor, ...] | None:
    """The int64 rows and the float64 sums of confidence and accuracy in each cell, by NumPy.

    Args:
        preds: logits or probabilities of any shape.
        target: any targets.
        edges: inner edges of the cells; a cell holds its upper edge.
        from_logits: whether ``preds`` are logits or probabilities.
        ignore_index: the class index of rows that do not count.

    Returns:
        None for all but some (N, C) predictions on the CPU with the (N,) indices of their classes, where no row is left
        out and none could be said to break a rule: the general way looks at those.

    >>> edges = np.array([0.85], np.float32)
    >>> plain_cells(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]), edges, from_logits=False)
    (tensor([1, 1]), tensor([0.8000, 0.9000], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64))
    """
    usual = type(preds) is type(target) is Tensor and preds.device.type == target.device.type == "cpu"
    if not usual or preds.ndim != 2 or target.shape != preds.shape[:1] or target.dtype != torch.int64:
        return None
    count, classes = preds.shape
    if not (count > 0 and classes > 1 and count * classes <= MOST and preds.is_floating_point()):
        return None
    if ignore_index is not None and 0 <= ignore_index < classes:
        return None
    rows = probabilities(preds.detach(), from_logits=from_logits).contiguous().numpy()
    right = target.numpy()
    if rows.dtype != np.float32 or right.view(np.uint64).max() >= classes:  # negative ones are large there
        return None
    if not (from_logits or _surely_probabilities(rows)):
        return None
    predicted = rows.argmax(1)  # the first of equal ones
    confidence = rows.ravel().take(np.arange(0, rows.size, classes) + predicted)
    cell, cells = edges.searchsorted(confidence), len(edges) + 1
    sums = (np.bincount(cell, values, cells) for values in (None, confidence, predicted == right))
    return tuple(torch.from_numpy(values) for values in sums)


def _surely_probabilities(rows: NDArray[np.float32]) -> bool:
    off = np.abs(rows @ np.ones(rows.shape[1], np.float32) - 1).max()
    return bool(off < TOLERANCE / 2 and rows.min() >= 0)
