"""A data set that tells which of its items it gives."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset, IterableDataset


class Indexed(NamedTuple):
    """An item, or a collated batch of them, and its position in the data set."""

    item: Any
    index: Any
    """An int; (N,) int64 for a batch."""


class WithIndex(Dataset[Indexed]):
    """What :func:`with_index` returns; the data set itself is ``.dataset``."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Indexed:
        return Indexed(self.dataset[index], range(len(self))[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Indexed]:
        """A whole batch at once, as data loaders ask for it; at once from the data set too, where it can."""
        fetch = getattr(self.dataset, "__getitems__", None)
        items = fetch(indices) if callable(fetch) else [self.dataset[index] for index in indices]
        return [Indexed(item, range(len(self))[index]) for item, index in zip(items, indices)]


def with_index(dataset: Any) -> WithIndex:
    """Wrap a data set so that each item comes as ``Indexed(item, index)``.

    For methods that ask for the signal ``index``: the callbacks take the index off again, and the model's own
    ``training_step`` sees the batch that it knows. Outside them the batch is the pair.

    Args:
        dataset: anything with ``__len__`` and ``__getitem__`` of positions. Wrap before ``Subset`` or
            ``random_split`` for positions in the whole, after them for positions in the part.

    Returns:
        A data set of the same length, whose batches under torch's default collation are ``Indexed(batch, (N,) int64)``.
        A ``collate_fn`` of your own is given a list of ``Indexed``. Wrapping twice changes nothing.

    Raises:
        TypeError: the data set is iterable only, so that its items have no position.

    Example:
        >>> data = with_index(["a", "b", "c"])
        >>> data[1]
        Indexed(item='b', index=1)
    """
    if isinstance(dataset, WithIndex):
        return dataset
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"with_index({type(dataset).__name__}) needs a data set with __len__ and __getitem__: the items of "
            "an iterable one have no position. Let it yield Indexed(item, index) itself, with a number of its own for "
            "each sample."
        )
    return WithIndex(dataset)
