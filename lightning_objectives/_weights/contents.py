"""Looks through what a checkpoint holds for the tensors of a network, also in modules and arrays that it pickles."""

import copy
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from lightning_objectives._files.names import plain_name
from lightning_objectives._weights.shards import like, local, place

_PLAIN = (str, bytes, int, float, complex, type(None))
"""What cannot hold a tensor."""


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply a function to everything in nested dictionaries, lists and tuples.

    Containers in which something changes are copied, because they may be the user's own; the others are returned.

    >>> mine = {"a": [1, 2], "b": "x"}
    >>> mapped(mine, lambda value: 3 if value == 2 else value), mine
    ({'a': [1, 3], 'b': 'x'}, {'a': [1, 2], 'b': 'x'})
    """
    if type(value) is tuple:
        inside = [mapped(inner, change) for inner in value]
        return value if all(new is old for new, old in zip(inside, value)) else tuple(inside)
    if not isinstance(value, (MutableMapping, list)):
        return change(value)
    items = value.items() if isinstance(value, MutableMapping) else enumerate(value)
    changed = {key: new for key, inner in items if (new := mapped(inner, change)) is not inner}
    result = copy.copy(value) if changed else value
    for key, new in changed.items():
        result[key] = new
    return result


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, each with its keys."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors_in(inner, f"{path}.{key}".lstrip("."))


def kept(value: Any, values: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> Any:
    """Return what a checkpoint holds without the network's own tensors, which will hold other values soon.

    Modules, arrays and other objects that hold such a tensor are copied.

    Args:
        value: the checkpoint, or a part of it.
        values: what stands in the network, by name.
        sources: the tensors of the network, at least those of ``values``.

    Raises:
        RuntimeError: an object holds a tensor of the network and cannot be copied.
    """
    by_place = {place(sources[name]): name for name in values}
    storages = _storages(values, sources)
    copies: dict[int, Any] = {}

    def keep(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = by_place.get(place(value))
            if name is not None:
                return like(values[name].to(local(value).device, value.dtype), value)
            return value.clone() if local(value).untyped_storage().data_ptr() in storages else value
        if isinstance(value, _PLAIN):
            return value
        found = _found(value, storages)
        if found is False:
            return value
        try:
            return copy.deepcopy(value, copies)
        except Exception as error:
            if found is None:  # It cannot be saved either, and whoever saves it says why.
                return value
            raise RuntimeError(
                f"The checkpoint holds a {type(value).__name__} with weights of the network, which would be the raw "
                f"weights and not the average, and it cannot be copied: {error}. Put its state_dict() there, or pass "
                "primary=False to AverageWeights."
            ) from error

    return mapped(value, keep)


def holds(value: Any, values: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> bool:
    """Whether a part of a checkpoint holds a tensor of the network, or cannot be looked through."""
    return _found(value, _storages(values, sources)) is not False


def first_raw(
    entries: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    sources: Mapping[str, Tensor],
    raw: Mapping[str, Tensor],
) -> str | None:
    """The key of an entry that equals raw weights and not what stands in the network; None if there is none.

    Args:
        entries: the tensors of a checkpoint.
        values: what stands in the network, by name.
        sources: the tensors of the network.
        raw: the raw weights, at most those of ``values``.
    """
    own = {place(tensor) for tensor in sources.values()}
    for key, entry in entries.items():
        if hasattr(entry, "to_local") or not entry.numel() or place(entry) in own:
            continue
        for name, weights in raw.items():
            if weights.shape != entry.shape or weights.is_complex() != entry.is_complex():
                continue
            weights, standing = (t.to(entry.device, entry.dtype) for t in (weights, values[name]))
            # Two numbers may be equal by accident.
            named = entry.numel() > 1 or plain_name(key).endswith(name)
            if named and entry.equal(weights) and not weights.equal(standing):
                return key
    return None


def _storages(values: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> dict[int, int]:
    """Where the memory of the network's tensors begins, and its bytes."""
    storages = [local(sources[name]).untyped_storage() for name in values]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _found(value: Any, storages: Mapping[int, int]) -> bool | None:
    """Whether a pickle of the value would hold one of the storages; None if it cannot be pickled."""
    finder = _Finder(storages)
    try:
        finder.dump(value)
    except Exception:
        return True if finder.found else None
    return finder.found


class _Finder(pickle.Pickler):
    """Looks for storages in an object by pickling it, without tensors, to nowhere."""

    def __init__(self, storages: Mapping[int, int]) -> None:
        super().__init__(self, protocol=2)  # torch.save has the same protocol.
        self.found = False
        self._storages = storages
        numpy = sys.modules.get("numpy")
        self._arrays: tuple[type[Any], ...] = (numpy.ndarray,) if numpy else ()

    def write(self, data: Any) -> int:
        """Throw the data away."""
        return len(data)

    def persistent_id(self, obj: Any) -> str | None:
        """Look at tensors and arrays in place of pickling them."""
        if isinstance(obj, Tensor):
            self.found |= local(obj).untyped_storage().data_ptr() in self._storages
            return "tensor"
        if isinstance(obj, self._arrays) and not obj.dtype.hasobject:
            begin = obj.__array_interface__["data"][0]
            self.found |= any(start <= begin < start + size for start, size in self._storages.items())
            return "array"
        return None
