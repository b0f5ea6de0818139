"""Flattens predictions and targets of any shape to rows, checks them, and turns logits into probabilities."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_objectives.shapes import FORMS, check_shapes

TOLERANCE = 0.01
"""How far a row of probabilities may be from summing to 1: bfloat16 rounds each of them by up to 0.4 %."""


class ClassificationRows(NamedTuple):
    """Holds what :func:`classification_rows` returns: R rows with C classes, two for predictions with one column."""

    preds: Tensor
    """(R, C) float32 or float64."""
    target: Tensor
    """(R,) int64 in [0, C), or (R, C) float."""
    kept: Tensor
    """(R,) bool: True for each row that counts, False for an ignored one."""
    invalid: Tensor
    """() int64: the number of rows that count and break a rule. Reading it waits for the device, so you decide when."""


def classification_rows(
    preds: Tensor, target: Tensor, *, from_logits: bool = True, ignore_index: int | None = -100
) -> ClassificationRows:
    """Flatten predictions and targets to rows, half precision to float32 and one column to two.

    Args:
        preds: (N, C, ...), or for two classes (N, 1, ...) or (N,) with the logit or probability of the second.
        target: (N, ...) class indices, or (N, C, ...) float class probabilities. With one column (N, ...) or
            (N, 1, ...): indices, or float probabilities of the second class.
        from_logits: whether ``preds`` are logits or probabilities.
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: the shapes or the types do not fit.

    Example:
        >>> rows = classification_rows(torch.tensor([0.5, 2.0]), torch.tensor([1, -100]))
        >>> rows.preds[rows.kept], rows.target[rows.kept]
        (tensor([[0.0000, 0.5000]]), tensor([1]))
    """
    soft = target.is_floating_point()
    _check_shapes(preds, target, soft=soft)
    preds = preds[:, None] if preds.ndim == 1 else preds
    one_column = preds.shape[1] == 1
    preds = _class_last(preds)
    if one_column:
        target = target.reshape(-1, 1) if soft else target.reshape(-1)
        preds = torch.cat([torch.zeros_like(preds) if from_logits else 1 - preds, preds], dim=1)
        target = torch.cat([1 - target, target], dim=1) if soft else target
    elif soft:
        target = _class_last(target)
    if soft:
        target = target.to(preds.dtype)
        kept = torch.ones(len(preds), dtype=torch.bool, device=preds.device)
        broken = _off_simplex(target)
    else:
        target = target.reshape(-1).long()
        kept = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
        broken = (target < 0) | (target >= preds.shape[1])
        target = target.clamp(0, preds.shape[1] - 1)
    if not from_logits:
        broken = broken | _off_simplex(preds)
    return ClassificationRows(preds, target, kept, (broken & kept).sum())


def _check_shapes(preds: Tensor, target: Tensor, *, soft: bool) -> None:
    if not preds.is_floating_point():
        raise ValueError(
            f"preds are {preds.dtype}: give floating-point logits or probabilities, not predicted classes."
        )
    if preds.ndim == 0 or (preds.ndim > 1 and preds.shape[1] == 0):
        raise ValueError(f"preds have the shape {tuple(preds.shape)}; expected (N, C, ...), or (N,) for two classes.")
    full = preds.shape if preds.ndim > 1 else (*preds.shape, 1)
    rows = (full[0], *full[2:])
    one_column = full[1] == 1
    fits = one_column and target.shape in (rows, full)
    if not fits and tuple(target.shape) != (tuple(full) if soft else rows):
        raise ValueError(
            f"target {tuple(target.shape)} of {target.dtype} does not fit preds {tuple(preds.shape)}: give class "
            f"indices {rows} or float class probabilities {tuple(full)}. Classes are dimension 1, as in "
            "cross_entropy; if yours are last, use `preds.movedim(-1, 1)`."
        )


def _class_last(values: Tensor) -> Tensor:
    rows = values.movedim(1, -1).reshape(-1, values.shape[1])
    return rows if rows.dtype == torch.float64 else rows.float()


def _off_simplex(rows: Tensor) -> Tensor:
    return ((rows.sum(1) - 1).abs() > TOLERANCE) | (rows.amin(1) < -TOLERANCE)


_PREDS = {"preds": FORMS["logits"]}


def check_pairs(preds: Tensor, target: Tensor) -> None:
    """Refuse predictions that are not (N, C), and targets that do not fit them.

    Raises:
        ValueError: with the shapes, the rule and the way out.
    """
    check_shapes(_PREDS, preds=preds, target=target)


def probabilities(preds: Tensor, *, from_logits: bool) -> Tensor:
    """(N, C) logits or probabilities of any float type -> (N, C) probabilities, float32 at least."""
    preds = preds if preds.dtype == torch.float64 else preds.float()
    return preds.softmax(1) if from_logits else preds
