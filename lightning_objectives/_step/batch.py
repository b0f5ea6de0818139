"""The batch of a user's step: its inputs, its size, and the index that with_index added."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_objectives.data.with_index import Indexed

_INPUT_KEYS = ("inputs", "input", "x", "image", "images", "img", "pixel_values", "input_ids", "data")


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

    >>> import torch
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
