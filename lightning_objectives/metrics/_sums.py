"""Base classes of the metrics: sums over rows that stay right over many batches, ranks, casts and devices."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_objectives.metrics._rows import TOLERANCE, ClassificationRows, classification_rows

WITHOUT_FLOAT64 = ("mps",)
"""Types of device without float64. Sums are float32 there, which are right up to about 10 million rows."""

_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
_DIMS = 4
"""The most dimensions of a state."""


class Sums(Metric):
    """Keeps sums that keep their type and can be added over batches, ranks and merged metrics.

    Args:
        settings: what decides what an update adds, as a text.
    """

    full_state_update = False

    def __init__(self, *, settings: str = "") -> None:
        super().__init__()
        # MetricCollection treats two metrics as one if their states have equal names and, after the first batch, equal
        # values, as top-1 and top-5 of a batch without an error have. So the names hold all that tells metrics apart.
        self._suffix = f"_{type(self).__name__}_{settings}"

    def __setattr__(self, name: str, value: Any) -> None:
        # torchmetrics sets these two around each update. `Module.__setattr__` would check whether they are parameters,
        # modules or buffers, and then do the same, which takes longer than a sum.
        if name in ("_computed", "_update_count"):
            vars(self)[name] = value
        else:
            super().__setattr__(name, value)

    def _add_sum(self, name: str, default: Tensor) -> None:
        self.add_state(name + self._suffix, default, dist_reduce_fx="sum")

    def _add(self, **values: Tensor | int) -> None:
        # Each sum is a new tensor because validation runs in inference mode, whose tensors cannot be changed outside.
        # It goes past `Module.__setattr__`, which would do the same, but takes longer than the sum.
        states = vars(self)
        for name, value in values.items():
            name += self._suffix
            states[name] = states[name] + value

    def _sum(self, name: str) -> Tensor:
        state: Tensor = getattr(self, name + self._suffix)
        return state

    def _joined(self, name: str) -> Tensor:
        """The rows of all batches, kept in a list until ranks are merged; (0,) before the first batch."""
        state: list[Tensor] | Tensor = getattr(self, name + self._suffix)
        return dim_zero_cat(state) if len(state) else torch.zeros(0, device=self.device)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        # Ranks can exchange only tensors of equal type and number of dimensions. The first batch shows how many classes
        # or features there are, so a rank without a batch first takes the form of its states from the others.
        names = list(self._reductions)
        forms = torch.tensor([_form(getattr(self, name)) for name in names], device=self.device)
        gathered = dist_sync_fn(forms, group=process_group or self.process_group)
        for name, (dtype, dims, *sizes) in zip(names, torch.stack(list(gathered)).amax(0).tolist()):
            state = getattr(self, name)
            if isinstance(state, list):
                if not state and dims:
                    empty = torch.zeros(0, *sizes[1:dims], dtype=_DTYPES[dtype], device=self.device)
                    setattr(self, name, [empty])
            elif not state.dim():
                setattr(self, name, state.expand(sizes[:dims]))
        super()._sync_dist(dist_sync_fn, process_group)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the metric's value, or the value or series ``val``, as torchmetrics does; returns figure and axes."""
        return self._plot(val, ax)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        # Casting a module to half precision also casts its metrics, and a sum of ones would then stop at 2048 (256 for
        # bfloat16). So we use only the device of what `fn` returns.
        device = fn(torch.zeros(0, device=self.device)).device

        def move(tensor: Tensor) -> Tensor:
            narrow = tensor.dtype == torch.float64 and device.type in WITHOUT_FLOAT64
            return tensor.to(device, torch.float32 if narrow else tensor.dtype)

        return super()._apply(move, exclude_state)


def _form(state: Tensor | list[Tensor]) -> list[int]:
    """The type, the number of dimensions and the sizes of a state; all zero for a list that is empty."""
    if isinstance(state, list):
        if not state:
            return [0] * (2 + _DIMS)
        state = state[0]
    return [_DTYPES.index(state.dtype), state.dim(), *state.shape, *[0] * (_DIMS - state.dim())]


class SumMetric(Sums):
    """Adds up values of rows of predictions and targets.

    Args:
        from_logits: whether predictions are logits or probabilities.
        ignore_index: rows with this class index do not count; None for none.
        settings: what else decides what an update adds, as a text.
    """

    def __init__(self, *, from_logits: bool, ignore_index: int | None, settings: str = "") -> None:
        super().__init__(settings=f"{settings}_{from_logits}_{ignore_index}")
        self.from_logits = from_logits
        self.ignore_index = ignore_index
        self._add_sum("count", torch.tensor(0))
        self._add_sum("invalid", torch.tensor(0))

    def _rows(self, preds: Tensor, target: Tensor) -> ClassificationRows:
        return classification_rows(preds, target, from_logits=self.from_logits, ignore_index=self.ignore_index)

    def _add_rows(self, rows: ClassificationRows, /, **sums: Tensor) -> None:
        """Count the rows together with what is summed over them: a batch that is refused does not count."""
        self._add(count=rows.kept.sum(), invalid=rows.invalid, **sums)

    def _check_rows(self) -> None:
        invalid = int(self._sum("invalid"))
        if invalid:
            raise ValueError(
                f"{type(self).__name__}: {invalid} of {int(self._sum('count'))} rows break a rule: class indices "
                f"must lie in [0, C) or equal ignore_index={self.ignore_index}; probabilities and soft targets must be "
                f">= 0 and sum to 1 within {TOLERANCE}. With logits use from_logits=True (here {self.from_logits})."
            )


class MeanMetric(SumMetric):
    """Computes the mean of a value per row, which a subclass defines as :meth:`values`; NaN without a row."""

    def __init__(self, *, from_logits: bool, ignore_index: int | None, settings: str = "") -> None:
        super().__init__(from_logits=from_logits, ignore_index=ignore_index, settings=settings)
        self._add_sum("total", torch.tensor(0.0, dtype=torch.float64))

    def values(self, preds: Tensor, target: Tensor) -> Tensor:
        """(R, C) predictions and their target -> (R,) values."""
        raise NotImplementedError(f"{type(self).__name__} must define values(preds, target), but does not.")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch; shapes as in the class. Never waits for the device."""
        rows = self._rows(preds, target)
        values = torch.where(rows.kept, self.values(rows.preds, rows.target), 0.0)
        self._add_rows(rows, total=values.sum(dtype=self._sum("total").dtype))

    def compute(self) -> Tensor:
        """The mean over all rows that count, () float32."""
        self._check_rows()
        return (self._sum("total") / self._sum("count")).float()
