"""Folds the elements of a criterion's call into the N rows that methods see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_objectives._step.criterion import Call

Unit = Literal["sample", "element"]


@dataclass(frozen=True, eq=False)
class Rows:
    """The losses of the rows of one call, and the way back from the rows to its elements."""

    losses: Tensor
    """(N,): for each sample the mean over its elements that count, or the elements themselves."""
    spread: Callable[[Tensor], Tensor]
    """Turns (N,) weights into weights of the elements' shape; elements that do not count get 0."""
    keep: Tensor | None
    """Which samples (or flattened elements) are rows, as a mask; None if all are."""


def fold(call: Call, elements: Tensor, *, unit: Unit, batch_size: int | None) -> Rows:
    """Fold the elements of a call into rows.

    With ``unit="sample"`` each sample is a row, and its loss is the mean over its elements that count. The first
    dimension is the batch, or the batch times the positions of each sample if the user's code has flattened them. With
    ``unit="element"`` each element that counts is a row.

    Raises:
        ValueError: the elements cannot be folded into ``batch_size`` samples.
    """
    if elements.dim() == 0:
        raise ValueError(
            "The criterion compares one sample without a batch dimension, so there are no rows. Add a batch dimension."
        )
    if unit == "element":
        return _rows(elements.flatten(), call.valid.flatten() if call.valid is not None else None, elements.shape)
    rows = elements.shape[0]
    samples = rows if batch_size is None else batch_size
    if rows != samples and (not call.by_class or rows % samples):
        raise ValueError(
            f"unit='sample': the criterion compares {rows} rows, which cannot be folded into the batch's {samples} "
            "samples. Use unit='element' to treat every row on its own."
        )
    table = elements.reshape(samples, -1)
    if table.shape[1] == 1:
        return _rows(table[:, 0], call.valid.flatten() if call.valid is not None else None, elements.shape)
    if call.valid is None:
        return Rows(table.mean(1), lambda w: w[:, None].expand_as(table).reshape(elements.shape), None)
    counts = call.valid.reshape(samples, -1).sum(1)
    means, keep = table.sum(1) / counts.clamp_min(1), counts > 0  # The loss of an ignored element is 0.
    return Rows(
        means[keep],
        lambda w: _fill(w, keep)[:, None].expand_as(table).reshape(elements.shape),
        keep,
    )


def _rows(flat: Tensor, keep: Tensor | None, shape: torch.Size) -> Rows:
    if keep is None:
        return Rows(flat, lambda w: w.reshape(shape), None)
    return Rows(flat[keep], lambda w: _fill(w, keep).reshape(shape), keep)


def _fill(weights: Tensor, keep: Tensor) -> Tensor:
    return weights.new_zeros(keep.shape).masked_scatter(keep, weights)
