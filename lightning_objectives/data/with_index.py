"""placeholder until the data rooms land."""

from typing import Any, NamedTuple

from torch import Tensor


class Indexed(NamedTuple):
    """An item and its position."""

    item: Any
    index: Tensor
