"""Reads a user's batch: its inputs, its tensors, and the index that with_index added."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_objectives.data.with_index import Indexed

_DEPTH = 8
"""How deep the parts of a batch are searched: objects may refer to each other in circles."""
_INPUT_NAMES = ("inputs", "input", "x", "image", "images", "img", "pixel_values", "input_ids", "data")


def part_of(batch: Any, path: str | int | None) -> Any:
    """Take the part of a batch under a path; without a path, the batch. None if there is nothing under it.

    A path is a position, or names with dots between them. Each name is a key, a position or an attribute.

    >>> part_of(({"encoder_cont": 1}, 2), "0.encoder_cont"), part_of({"a.b": 3}, "a.b"), part_of([4], "x")
    (1, 3, None)
    """
    if path is None or isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping) and path in batch:
        return batch[path]
    for name in str(path).split("."):
        batch = _child(batch, name)
    return batch


def _child(batch: Any, name: str) -> Any:
    if isinstance(batch, Mapping):
        return batch.get(name, batch.get(int(name)) if name.lstrip("-").isdecimal() else None)
    if isinstance(batch, (tuple, list)) and name.lstrip("-").isdecimal():
        position = int(name)
        return batch[position] if -len(batch) <= position < len(batch) else None
    return None if batch is None or isinstance(batch, Tensor) else getattr(batch, name, None)


def _children(batch: Any) -> dict[Any, Any]:
    """The parts of a batch, by key, position or attribute; empty for a tensor and for anything else."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, (tuple, list)):
        return dict(enumerate(batch))
    if isinstance(batch, (Tensor, str, bytes, type)) or callable(batch):
        return {}
    if dataclasses.is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    attributes = dict(getattr(batch, "__dict__", {}))
    keys = getattr(batch, "keys", None)
    if callable(keys):  # Graphs of torch_geometric keep their tensors elsewhere, and list their names.
        attributes |= {key: getattr(batch, key) for key in keys() if isinstance(key, str) and hasattr(batch, key)}
    return attributes


def inputs_of(batch: Any, path: str | int | None) -> Tensor:
    """Find the network's inputs in a batch: under ``path``, first in a sequence, or under a usual name.

    If that part is itself a batch, as several loaders give them, the search goes on in it.

    Raises:
        ValueError: there is no tensor at that place.

    >>> import torch
    >>> inputs_of([(torch.zeros(1), 2), {"image": torch.ones(1)}], 1)
    tensor([1.])
    """
    part = part_of(batch, path)
    while not isinstance(part, Tensor):
        children = _children(part)
        names = [0] if isinstance(part, (tuple, list)) else [name for name in _INPUT_NAMES if name in children]
        if not names or names[0] not in children:
            break
        part = children[names[0]]
    if not isinstance(part, Tensor):
        paths = list(_paths(batch))
        tensors = f"Its tensors are at {', '.join(map(repr, paths[:8]))}. " if paths else ""
        raise ValueError(
            f"There is no tensor of inputs at input={path!r} in a batch that is a {type(batch).__name__}. {tensors}"
            "Say input='path.to.it', a path of "
            "keys, positions and attributes ('0.encoder_cont'), or answer `objective_inputs(batch)` with the mixin."
        )
    return part


def _paths(batch: Any, prefix: str = "", depth: int = _DEPTH) -> Iterator[str]:
    """The paths of the tensors in a batch."""
    for name, child in _children(batch).items() if depth else ():
        if isinstance(child, Tensor):
            yield f"{prefix}{name}"
        else:
            yield from _paths(child, f"{prefix}{name}.", depth - 1)


def with_tensor(batch: Any, old: Tensor, new: Tensor) -> Any:
    """Copy the batch with another tensor in place of one of its own; the user's own batch stays as it is.

    Raises:
        ValueError: the tensor is not in the batch.
    """
    other = changed(batch, lambda value: new if value is old else value)
    if other is batch:
        raise ValueError(
            f"The inputs of shape {tuple(old.shape)} are not a tensor of the batch itself, so other inputs cannot be "
            "put in their place. Let `objective_inputs(batch)` return a tensor that lies in the batch, or say input=."
        )
    return other


def detached(value: Any) -> Any:
    """The same value, whose tensors have no gradient; where none has one, the same object.

    >>> import torch
    >>> detached({"a": torch.ones(1, requires_grad=True)})
    {'a': tensor([1.])}
    """
    return changed(value, lambda part: part.detach() if isinstance(part, Tensor) and part.requires_grad else part)


def changed(batch: Any, change: Callable[[Any], Any], depth: int = _DEPTH) -> Any:
    """Change each part of a batch, from the outside in; a part in which nothing changes is the same object."""
    whole = change(batch)
    if whole is not batch or not depth:
        return whole
    children = _children(batch)
    new = {key: changed(value, change, depth - 1) for key, value in children.items()}
    new = {key: value for key, value in new.items() if value is not children[key]}
    if not new:
        return batch
    if isinstance(batch, Mapping):
        return type(batch)({**batch, **new})  # type: ignore[call-arg]  # dict-like
    if isinstance(batch, (tuple, list)):
        items = (children | new).values()
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    other = copy.copy(batch)
    for name, value in new.items():
        (object.__setattr__ if _is_frozen(other) else setattr)(other, name, value)
    return other


def _is_frozen(batch: Any) -> bool:
    return bool(getattr(getattr(batch, "__dataclass_params__", None), "frozen", False))


def tensors_of(batch: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    """All tensors in a batch that have a dimension, in their order.

    >>> import torch
    >>> [len(tensor) for tensor in tensors_of({"a": torch.zeros(2), "b": [torch.ones(3), torch.tensor(1)]})]
    [2, 3]
    """
    if isinstance(batch, Tensor):
        if batch.dim():
            yield batch
    elif depth:
        for child in _children(batch).values():
            yield from tensors_of(child, depth - 1)


def batch_size_of(batch: Any) -> int | None:
    """The length of the first tensor in a batch; None if there is no tensor."""
    return next((len(tensor) for tensor in tensors_of(batch)), None)


def unwrap(batch: Any, path: str | int | None = None) -> tuple[Any, Tensor | None]:
    """Split the batch into what the user's step expects and the index that `with_index` added.

    If several loaders give a batch each, the index is that of the batch under ``path``, or of the first that has one.
    """
    if isinstance(batch, Indexed):
        return batch.item, batch.index
    indices: list[Tensor] = []

    def item_of(value: Any) -> Any:
        if not isinstance(value, Indexed):
            return value
        indices.append(value.index)
        return value.item

    if path is not None:
        changed(part_of(batch, path), item_of)
    return changed(batch, item_of), next(iter(indices), None)


def told_batch_size(module: Any, batch: Any, told: int | str | None) -> int | None:
    """The number of samples in a batch, if the user says it: by the mixin, or as a number or a path in the batch.

    Raises:
        ValueError: there is no number under the path.
    """
    answer = getattr(module, "objective_batch_size", None)
    size = answer(batch) if answer is not None else None
    if size is None and told is not None:
        size = told if isinstance(told, int) else part_of(batch, told)
        if isinstance(size, Tensor):
            size = size.item() if size.dim() == 0 else len(size)
        if not isinstance(size, int):
            raise ValueError(
                f"batch_size={told!r} names no number in a batch that is a {type(batch).__name__}: {size!r:.60}. "
                "Name a number, a list, or a tensor with one entry for each sample."
            )
    return size
