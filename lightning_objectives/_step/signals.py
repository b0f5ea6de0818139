"""What methods may ask for, made for one training step from the batch, the criterion's call and the Trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._step.criterion import Call
from lightning_objectives._step.rows import Rows
from lightning_objectives.data.with_index import Indexed

_INPUT_KEYS = ("inputs", "input", "x", "image", "images", "img", "pixel_values", "input_ids", "data")
ROWS = frozenset({"features", "group", "index", "inputs", "logits", "losses", "reference_losses", "target"}) | {
    "teacher_features",
    "teacher_logits",
}
"""The signals that have one row a sample."""


def part_of(batch: Any, key: str | int | None) -> Any:
    """What lies in a batch under ``key``: one of several loaders' batches, or the inputs; the batch without a key."""
    if key is None or isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        return batch.get(key)
    return batch[key] if isinstance(key, int) and isinstance(batch, (tuple, list)) else None


def inputs_of(batch: Any, key: str | int | None) -> Tensor:
    """The network's inputs in a batch: under ``key``, or the first element of a sequence, or under a usual name.

    In batches within batches, as several loaders give them, the same is looked for again.

    Raises:
        ValueError: there is no tensor at that place.

    >>> inputs_of([(torch.zeros(1), 2), {"image": torch.ones(1)}], 1)
    tensor([1.])
    """
    found = part_of(batch, key)
    while not isinstance(found, Tensor):
        if isinstance(found, Mapping):
            found = next((found[name] for name in _INPUT_KEYS if name in found), None)
        elif isinstance(found, (tuple, list)) and found:
            found = found[0]
        else:
            break
    if not isinstance(found, Tensor):
        keys = f"the keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(
            f"The inputs were not found (input={key!r}) in a batch with {keys}; say input='key' or input=position, or "
            "answer `objective_inputs(batch)` with the mixin."
        )
    return found


def with_inputs(batch: Any, key: str | int | None, inputs: Tensor) -> Any:
    """The batch with other inputs; the user's own batch is not changed."""
    old = inputs_of(batch, key)
    return _changed(batch, lambda value: inputs if value is old else value)


def _changed(batch: Any, change: Callable[[Any], Any]) -> Any:
    """A batch with each part changed, from the outside in; the same object where nothing is."""
    changed = change(batch)
    if changed is not batch:
        return changed
    if isinstance(batch, Mapping):
        parts = {key: _changed(value, change) for key, value in batch.items()}
        same = all(parts[key] is value for key, value in batch.items())
        return batch if same else type(batch)(parts)  # type: ignore[call-arg]  # dict-like
    if isinstance(batch, (tuple, list)):
        items = [_changed(value, change) for value in batch]
        if all(new is old for new, old in zip(items, batch)):
            return batch
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def batch_size_of(batch: Any) -> int | None:
    """The length of the first tensor in a batch; None where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return next((size for size in map(batch_size_of, items) if size is not None), None)


@dataclass(eq=False)
class Signals:
    """The signals of one training step; each is made when it is first asked for."""

    module: Any
    """The LightningModule; a mixin's answers are asked of it first."""
    batch: Any
    input: str | int | None = None
    index: Tensor | None = None
    made: dict[str, Any] = field(default_factory=dict)
    """What other parts of the pipeline have provided: ``features``, ``head``, ``network``, ``teacher_logits``, ..."""
    makers: dict[str, Callable[["Signals"], Any]] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """One signal by name.

        Raises:
            ValueError: it cannot be had; the message says what to do.
        """
        if name not in self.made:
            if name in self.makers:
                self.made[name] = self.makers[name](self)
            else:
                self.made[name] = getattr(self, f"_{name}", lambda: self._missing(name))()
        return self.made[name]

    def take(self, call: Call) -> None:
        """Provide ``logits`` and ``target`` from the criterion's call, one row for each thing compared."""
        logits = call.rows(call.input)
        target = call.target.flatten() if call.indexed else call.rows(call.target)
        if call.function is nn.functional.binary_cross_entropy:
            logits = logits.logit()
        self.made |= {"logits": logits, "target": target}

    def row(self, name: str, rows: Rows) -> Tensor:
        """One signal, with the rows that count."""
        if name == "losses":
            return rows.losses
        value: Tensor = self.get(name)
        if rows.keep is not None:
            value = value[rows.keep] if len(value) == len(rows.keep) else value
        if len(value) != len(rows.losses):
            raise ValueError(
                f"The signal {name!r} has {len(value)} rows, but there are {len(rows.losses)} losses: it cannot be "
                "matched to them. Use the other unit ('sample' or 'element'), or a method that does not ask for it."
            )
        return value

    def _inputs(self) -> Tensor:
        answer = getattr(self.module, "objective_inputs", None)
        found = answer(self.batch) if answer is not None else None
        return found if isinstance(found, Tensor) else inputs_of(self.batch, self.input)

    def _index(self) -> Tensor:
        answer = getattr(self.module, "objective_index", None)
        found = answer(self.batch) if answer is not None else None
        if found is None:
            found = self.index
        if found is None:
            raise ValueError(
                "The signal 'index' is asked for, but the batch carries none: wrap the training set with "
                "lightning_objectives.data.with_index, or answer `objective_index(batch)` with the mixin."
            )
        return torch.as_tensor(found)

    def _group(self) -> Tensor:
        answer = getattr(self.module, "objective_group", None)
        found = answer(self.batch) if answer is not None else None
        if found is None and isinstance(self.batch, Mapping):
            found = self.batch.get("group")
        if found is None:
            raise ValueError(
                "The signal 'group' is asked for, but the batch has no key 'group': add it to the data set's items, or "
                "answer `objective_group(batch)` with the mixin."
            )
        return torch.as_tensor(found)

    def _missing(self, name: str) -> Any:
        raise ValueError(
            f"The signal {name!r} cannot be had here: no callback of this training provides it, or the criterion had "
            f"not been called when it was asked for."
        )


def unwrap(batch: Any, key: str | int | None = None) -> tuple[Any, Tensor | None]:
    """The batch as the user's step expects it, and the index that `with_index` added.

    Of several loaders' batches the index is that of the one under ``key``, or of the first that has one.
    """
    if isinstance(batch, Indexed):
        return batch.item, batch.index
    found: list[Tensor] = []

    def bare(value: Any) -> Any:
        if not isinstance(value, Indexed):
            return value
        found.append(value.index)
        return value.item

    if key is not None:
        _changed(part_of(batch, key), bare)
    return _changed(batch, bare), next(iter(found), None)
