"""A calibration histogram of the most usual batch in few calls: on the CPU these cost more than the numbers."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_objectives.metrics._rows import TOLERANCE, probabilities

MOST = 2**21
"""Predictions above which torch's several threads are faster."""
INFINITY = 0x7F800000
"""Its bits as a float32."""
_max = np.maximum.reduce  # what an array's own `max` calls, by way of Python


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
    usual = type(preds) is type(target) is Tensor and preds.is_cpu and target.is_cpu
    if not usual or preds.ndim != 2 or target.ndim != 1 or target.dtype != torch.int64:
        return None
    count, classes = preds.shape
    if not (target.shape[0] == count > 0 and classes > 1 and count * classes <= MOST and preds.is_floating_point()):
        return None
    if ignore_index is not None and 0 <= ignore_index < classes:
        return None
    rows = probabilities(preds.detach(), from_logits=from_logits).contiguous().numpy()
    right = target.numpy()
    if rows.dtype != np.float32 or _max(right.view(np.uint64)) >= classes:  # negative ones are large there
        return None
    # The bits of floats from 0 up rise as these do, and those of negative ones and of NaN lie above. So one pass over
    # integers, which NumPy compares faster, finds the first of the greatest and whether any is no number >= 0.
    bits = rows.view(np.uint32)
    predicted = bits.argmax(1)
    at = np.arange(0, rows.size, classes) + predicted
    if _max(bits.ravel().take(at)) > INFINITY:
        return None
    if not from_logits and _max(np.abs(rows @ _ones(classes) - 1)) >= TOLERANCE / 2:
        return None
    confidence = rows.ravel().take(at)
    cell, cells = edges.searchsorted(confidence), len(edges) + 1
    sums = [np.bincount(cell, values, cells) for values in (None, confidence, predicted == right)]
    return tuple(map(torch.from_numpy, sums))


@cache
def _ones(count: int) -> NDArray[np.float32]:
    return np.ones(count, np.float32)
