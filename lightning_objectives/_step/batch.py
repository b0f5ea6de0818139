"""Reads a user's batch: its inputs, its size, and the index that with_index added."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_objectives.data.with_index import Indexed

_INPUT_KEYS = ("inputs", "input", "x", "image", "images", "img", "pixel_values", "input_ids", "data")


def part_of(batch: Any, key: str | int | None) -> Any:
    """Take the part of a batch under ``key``, such as one of several loaders' batches; without a key, the batch."""
    if key is None or isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        return batch.get(key)
    return batch[key] if isinstance(key, int) and isinstance(batch, (tuple, list)) else None


def inputs_of(batch: Any, key: str | int | None) -> Tensor:
    """Find the network's inputs in a batch: under ``key``, first in a sequence, or under a usual name.

    If that part is itself a batch, as several loaders give them, the search goes on in it.

    Raises:
        ValueError: there is no tensor at that place.

    >>> import torch
    >>> inputs_of([(torch.zeros(1), 2), {"image": torch.ones(1)}], 1)
    tensor([1.])
    """
    part = part_of(batch, key)
    while not isinstance(part, Tensor):
        if isinstance(part, Mapping):
            part = next((part[name] for name in _INPUT_KEYS if name in part), None)
        elif isinstance(part, (tuple, list)) and part:
            part = part[0]
        else:
            break
    if not isinstance(part, Tensor):
        keys = f"the keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(
            f"There is no tensor of inputs at input={key!r} in a batch with {keys}. Say input='key' or input=position, "
            "or answer `objective_inputs(batch)` with the mixin."
        )
    return part


def with_inputs(batch: Any, key: str | int | None, inputs: Tensor) -> Any:
    """Copy the batch with other inputs; the user's own batch stays as it is."""
    old = inputs_of(batch, key)
    return _changed(batch, lambda value: inputs if value is old else value)


def _changed(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Change each part of a batch, from the outside in; a part in which nothing changes is the same object."""
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
    """The length of the first tensor in a batch; None if there is no tensor."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return next((size for size in map(batch_size_of, items) if size is not None), None)


def unwrap(batch: Any, key: str | int | None = None) -> tuple[Any, Tensor | None]:
    """Split the batch into what the user's step expects and the index that `with_index` added.

    If several loaders give a batch each, the index is that of the batch under ``key``, or of the first that has one.
    """
    if isinstance(batch, Indexed):
        return batch.item, batch.index
    indices: list[Tensor] = []

    def item_of(value: Any) -> Any:
        if not isinstance(value, Indexed):
            return value
        indices.append(value.index)
        return value.item

    if key is not None:
        _changed(part_of(batch, key), item_of)
    return _changed(batch, item_of), next(iter(indices), None)
