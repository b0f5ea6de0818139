"""Folds the elements of a criterion's call into the N rows that methods see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_objectives._step.samples import Samples

Unit = Literal["sample", "element"]
COUNTED = "a method sees only the rows that count, and the device alone knows how many these are"
"""Why a step with ignored targets waits for the device."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The losses of the rows of one call, and the way back from the rows to its elements."""

    losses: Tensor
    """(N,): for each sample the mean over its elements that count, or the elements themselves."""
    spread: Callable[[Tensor], Tensor]
    """Turns (N,) weights into weights of the elements' shape; elements that do not count get 0."""
    kept: Tensor | None = None
    """Which samples (or flattened elements) are rows, by their numbers; None if all are."""
    total: int = 0
    """How many samples (or elements) there are, if not all are rows."""


def fold(elements: Tensor, valid: Tensor | None, samples: Samples | None) -> Rows:
    """Fold the elements of a call into rows.

    Args:
        elements: the unreduced losses.
        valid: which of them count; None if all do.
        samples: which sample each element belongs to: a sample is a row, and its loss is the mean over its elements
            that count. None if each element that counts is a row.
    """
    shape = elements.shape
    if samples is None or (samples.ids is None and elements.dim() == 1):
        return _kept(elements.flatten(), valid.flatten() if valid is not None else None, lambda w: w.reshape(shape))
    if samples.ids is None:
        table = elements.flatten(1)

        def spread(weights: Tensor) -> Tensor:
            return weights[:, None].expand_as(table).reshape(shape)

        if valid is None:
            return Rows(table.mean(1), spread)
        counts = valid.flatten(1).sum(1)
        means = torch.where(valid.flatten(1), table, 0.0).sum(1) / counts.clamp_min(1)
        return _kept(means, counts > 0, spread)
    ids, flat = samples.ids.flatten(), elements.flatten()
    inside = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid.flatten()
    # Sums by sample in double precision: the order of the elements must not show.
    wide = torch.promote_types(flat.dtype, torch.float64) if flat.device.type == "cpu" else torch.float32
    sums = torch.zeros(samples.count, dtype=wide, device=flat.device)
    counts = sums.new_zeros(samples.count).index_add(0, ids, inside.to(wide))
    sums = sums.index_add(0, ids, torch.where(inside, flat, 0.0).to(wide))
    means = (sums / counts.clamp_min(1)).to(flat.dtype)
    # A sample without any element is no row.
    some = None if samples.has_all and valid is None else counts > 0
    return _kept(means, some, lambda w: torch.where(inside, w[ids], 0.0).reshape(shape))


def _kept(losses: Tensor, keep: Tensor | None, spread: Callable[[Tensor], Tensor]) -> Rows:
    if keep is None:
        return Rows(losses, spread)
    rows = keep.nonzero().squeeze(1)  # One wait for the device; a boolean index would wait in the backward pass again.
    return Rows(losses[rows], lambda w: spread(w.new_zeros(keep.shape).index_copy(0, rows, w)), rows, len(keep))
