"""placeholder until the data rooms land."""

from typing import Any, NamedTuple


class Indexed(NamedTuple):
    """An item and its position."""

    item: Any
    index: Any  # type: ignore[assignment]  # the tuple method of this name is not needed


class _W:
    def __init__(self, d):
        self.d = d

    def __len__(self):
        return len(self.d)

    def __getitem__(self, i):
        return Indexed(self.d[i], i)


def with_index(d):
    return _W(d)
