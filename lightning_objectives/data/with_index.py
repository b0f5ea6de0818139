"""Adds its index to each item of a data set, for methods that must know a sample again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset, IterableDataset


class Indexed(NamedTuple):
    """Holds an item, or a collated batch of items, and its position in the data set."""

    item: Any
    index: Any
    """An int for an item, (N,) int64 for a batch."""


class WithIndex(Dataset[Indexed]):
    """Adds the index to each item of ``.dataset``; :func:`with_index` makes it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Indexed:
        return Indexed(self.dataset[index], range(len(self))[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Indexed]:
        """Return a whole batch for a data loader, in one call of the data set too if it has this method."""
        fetch = getattr(self.dataset, "__getitems__", None)
        items = fetch(indices) if callable(fetch) else [self.dataset[index] for index in indices]
        return [Indexed(item, range(len(self))[index]) for item, index in zip(items, indices)]


def with_index(dataset: Any) -> WithIndex:
    """Wrap a data set so that each item comes as ``Indexed(item, index)``.

    Use it for methods that ask for the signal ``index``, and for a cache of a teacher's logits. Callbacks of the
    training step remove the index again, so that ``training_step`` gets the batch that it knows. Without such a
    callback, the batch is the pair.

    Args:
        dataset: anything with ``__len__`` and ``__getitem__`` of positions. Wrap it before
            ``Subset`` or ``random_split`` for positions in the whole data set, after them for positions in the part.

    Returns:
        A data set of the same length, whose batches under torch's default collation are ``Indexed(batch, (N,) int64)``.
        A ``collate_fn`` of your own gets a list of ``Indexed``. Wrapping twice changes nothing.

    Raises:
        TypeError: the data set is iterable only, so its items have no position.

    Example:
        >>> data = with_index(["a", "b", "c"])
        >>> data[1]
        Indexed(item='b', index=1)
    """
    if isinstance(dataset, WithIndex):
        return dataset
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"with_index({type(dataset).__name__}) needs a data set with __len__ and __getitem__, because the "
            "items of an iterable data set have no position. Let it yield Indexed(item, index) itself, with a number "
            "of its own for each sample."
        )
    return WithIndex(dataset)
