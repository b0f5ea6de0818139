"""What the metrics of classification share: predictions and targets of any shape as rows, and sums that stay right."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

TOLERANCE = 0.01
"""How far a row of probabilities may be from summing to 1; bfloat16 rounds each of them by up to 0.4 %."""
WITHOUT_FLOAT64 = ("mps",)
"""Types of device on which sums are float32, since they know no float64: right up to some 10 million rows."""


class Rows(NamedTuple):
    """R rows with C classes; two where the predictions have one column."""

    preds: Tensor
    """(R, C) float32 or float64."""
    target: Tensor
    """(R,) int64 in [0, C), or (R, C) float."""
    kept: Tensor
    """(R,) bool: whether the row counts, which an ignored one does not."""
    invalid: Tensor
    """() int64: rows that count and whose values break a rule. Not looked at here: that would wait for the device."""


def as_rows(preds: Tensor, target: Tensor, *, from_logits: bool, ignore_index: int | None) -> Rows:
    """Flatten predictions and targets to rows, half precision to float32 and one column to two.

    Args:
        preds: (N, C, ...), or for two classes (N, 1, ...) or (N,) with the logit or probability of the second.
        target: (N, ...) class indices, or (N, C, ...) float class probabilities. With one column (N, ...) or
            (N, 1, ...): indices, or float probabilities of the second class.
        from_logits: whether ``preds`` are logits or probabilities.
        ignore_index: the class index of rows that do not count.

    Raises:
        ValueError: the shapes or the types do not fit.

    >>> as_rows(torch.tensor([0.5]), torch.tensor([1]), from_logits=True, ignore_index=None).preds
    tensor([[0.0000, 0.5000]])
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
    return Rows(preds, target, kept, (broken & kept).sum())


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
            "cross_entropy; where they are last, use `preds.movedim(-1, 1)`."
        )


def _class_last(values: Tensor) -> Tensor:
    rows = values.movedim(1, -1).reshape(-1, values.shape[1])
    return rows if rows.dtype == torch.float64 else rows.float()


def _off_simplex(rows: Tensor) -> Tensor:
    return ((rows.sum(1) - 1).abs() > TOLERANCE) | (rows.amin(1) < -TOLERANCE)


def probabilities(preds: Tensor, *, from_logits: bool) -> Tensor:
    """(N, C) logits or probabilities of any float type -> (N, C) probabilities, float32 at least."""
    preds = preds if preds.dtype == torch.float64 else preds.float()
    return preds.softmax(1) if from_logits else preds


class SumMetric(Metric):
    """A metric out of sums over rows, which keep their type and add up over batches, ranks and merged metrics.

    Args:
        from_logits: whether predictions are logits or probabilities.
        ignore_index: the class index of rows that do not count.
        settings: what else decides what an update adds.
    """

    full_state_update = False

    def __init__(self, *, from_logits: bool, ignore_index: int | None, settings: str = "") -> None:
        super().__init__()
        self.from_logits = from_logits
        self.ignore_index = ignore_index
        # MetricCollection takes two metrics for one if their states have equal names and, after the first batch, equal
        # values, as top-1 and top-5 of a batch without an error have. So the names hold all that sets metrics apart.
        self._suffix = f"_{type(self).__name__}_{settings}_{from_logits}_{ignore_index}"
        self._add_sum("count", torch.tensor(0))
        self._add_sum("invalid", torch.tensor(0))

    def __setattr__(self, name: str, value: Any) -> None:
        # torchmetrics sets these two around each update. `Module.__setattr__` would look whether they are parameters,
        # modules or buffers, and put them at the same place: it takes longer than a sum.
        if name in ("_computed", "_update_count"):
            vars(self)[name] = value
        else:
            super().__setattr__(name, value)

    def _add_sum(self, name: str, default: Tensor) -> None:
        self.add_state(name + self._suffix, default, dist_reduce_fx="sum")

    def _add(self, **values: Tensor | int) -> None:
        # Out of place: validation runs in inference mode, whose tensors cannot be changed outside it.
        # Past `Module.__setattr__`, which takes longer than the sum, and would put it at the same place.
        states = vars(self)
        for name, value in values.items():
            name += self._suffix
            states[name] = states[name] + value

    def _sum(self, name: str) -> Tensor:
        state: Tensor = getattr(self, name + self._suffix)
        return state

    def _rows(self, preds: Tensor, target: Tensor) -> Rows:
        rows = as_rows(preds, target, from_logits=self.from_logits, ignore_index=self.ignore_index)
        self._add(count=rows.kept.sum(), invalid=rows.invalid)
        return rows

    def _check_rows(self) -> None:
        invalid = int(self._sum("invalid"))
        if invalid:
            raise ValueError(
                f"{type(self).__name__}: {invalid} of {int(self._sum('count'))} rows break a rule: class indices lie "
                f"in [0, C) or equal ignore_index={self.ignore_index}; probabilities and soft targets are >= 0 and "
                f"sum to 1 within {TOLERANCE}. With logits use from_logits=True (here {self.from_logits})."
            )

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the value, or the given value or series of values, as torchmetrics does; returns figure and axes."""
        return self._plot(val, ax)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        # A module that is cast to half precision takes its metrics along, where a sum of ones would stop at 2048 (256
        # for bfloat16). So only the device is taken from `fn`.
        device = fn(torch.zeros(0, device=self.device)).device

        def move(tensor: Tensor) -> Tensor:
            narrow = tensor.dtype == torch.float64 and device.type in WITHOUT_FLOAT64
            return tensor.to(device, torch.float32 if narrow else tensor.dtype)

        return super()._apply(move, exclude_state)


class MeanMetric(SumMetric):
    """The mean of a value per row, which a subclass defines as :meth:`values`; NaN without a row."""

    def __init__(self, *, from_logits: bool, ignore_index: int | None, settings: str = "") -> None:
        super().__init__(from_logits=from_logits, ignore_index=ignore_index, settings=settings)
        self._add_sum("total", torch.tensor(0.0, dtype=torch.float64))

    def values(self, preds: Tensor, target: Tensor) -> Tensor:
        """(R, C) predictions and their target -> (R,) values."""
        raise NotImplementedError(f"{type(self).__name__} defines no values(preds, target).")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch; shapes as in the class. Never waits for the device."""
        rows = self._rows(preds, target)
        values = torch.where(rows.kept, self.values(rows.preds, rows.target), 0.0)
        self._add(total=values.sum(dtype=self._sum("total").dtype))

    def compute(self) -> Tensor:
        """The mean over all rows that count, () float32."""
        self._check_rows()
        return (self._sum("total") / self._sum("count")).float()
