"""Counts the calibration histogram of a usual batch in few calls, because calls cost more than numbers on the CPU."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_objectives.metrics._rows import TOLERANCE, probabilities

MOST = 2**21
"""The largest number of predictions. Above it, torch is faster because it uses several threads."""
INFINITY = 0x7F800000
"""The bits of infinity as a float32."""
_max = np.maximum.reduce  # An array's own `max` calls this too, but through slow Python.


def numpy_cells(
    preds: Tensor, target: Tensor, edges: NDArray[np.float32], *, from_logits: bool, ignore_index: int | None = None
) -> tuple[Tensor, ...] | None:
    """Count rows (int64) and add up confidence and accuracy (float64) in each cell, with NumPy.

    Args:
        preds: logits or probabilities of any shape.
        target: targets of any form.
        edges: inner edges of the cells; the upper edge of a cell belongs to it.
        from_logits: whether ``preds`` are logits or probabilities.
        ignore_index: rows with this class index do not count; None for none.

    Returns:
        the three (cells,) tensors, or None if the batch needs the general computation. They are given only for (N, C)
        predictions on the CPU with (N,) class indices, if every row counts and surely breaks no rule.

    >>> edges = np.array([0.85], np.float32)
    >>> numpy_cells(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]), edges, from_logits=False)
    (tensor([1, 1]), tensor([0.8000, 0.9000], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64))
    """
    usual = type(preds) is type(target) is Tensor and preds.is_cpu and target.is_cpu
    if not usual or preds.ndim != 2 or target.ndim != 1 or target.dtype != torch.int64:
        return None
    count, classes = preds.shape
    if not (target.shape[0] == count > 0 and classes > 1 and count * classes <= MOST and preds.is_floating_point()):
        return None
    if ignore_index is not None and 0 <= ignore_index < classes:
        return None
    rows = probabilities(preds.detach(), from_logits=from_logits).contiguous().numpy()
    labels = target.numpy()
    if rows.dtype != np.float32 or _max(labels.view(np.uint64)) >= classes:  # a negative label is large there
        return None
    # The bits of floats >= 0 are ordered as the floats are, and those of negative floats and of NaN lie above. So one
    # pass over integers, which NumPy compares faster, finds the first greatest and whether any value is not >= 0.
    bits = rows.view(np.uint32)
    predicted = bits.argmax(1)
    positions = np.arange(0, rows.size, classes) + predicted
    if _max(bits.ravel().take(positions)) > INFINITY:
        return None
    if not from_logits and _max(np.abs(rows @ _ones(classes) - 1)) >= TOLERANCE / 2:
        return None
    confidence = rows.ravel().take(positions)
    cell, cells = edges.searchsorted(confidence), len(edges) + 1
    sums = [np.bincount(cell, values, cells) for values in (None, confidence, predicted == labels)]
    return tuple(map(torch.from_numpy, sums))


@cache
def _ones(count: int) -> NDArray[np.float32]:
    return np.ones(count, np.float32)
