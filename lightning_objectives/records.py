"""What methods and their callbacks pass to each other, beside tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor


class Row(NamedTuple):
    """What a method remembers of one sample: a tensor of this shape, float32, that begins with one number.

    >>> Row(("C",), 0.0)
    Row(shape=('C',), initial=0.0, spread=0.0)
    """

    shape: tuple[int | Literal["C"], ...] = ()
    """Its sizes; C is the number of classes."""
    initial: float = 0.0
    """Each of its numbers before the sample has come."""
    spread: float = 0.0
    """How far from ``initial`` each number may begin: drawn uniformly, from the callback's ``seed``."""


@dataclass(frozen=True)
class LayerPlace:
    """Where a layer stands among those that a surgery changes, and how far the training has come."""

    number: int = 0
    """Its number, from 0, in the order in which the layers are named."""
    count: int = 1
    """How many layers there are."""
    path: str = ""
    """Its path in the module, for messages."""
    samples: int | None = None
    """The number of samples in the batch; None if it is unknown."""
    part_done: Callable[[], float] = lambda: 0.0
    """Gives the part of the training that is done, in [0, 1]; an error if the training has no end."""


@dataclass
class AverageState:
    """What an averaging rule remembers: by the name of a slot, one float32 tensor for each parameter, in order."""

    slots: dict[str, list[Tensor]]
    updates: int = 0
    scratch: dict[str, Any] = field(default_factory=dict, repr=False)
    checked: Sequence[Tensor] | None = field(default=None, repr=False, compare=False)
    """The list of parameters whose shapes were checked last, see :meth:`Rule.check`."""


class MergePiece(NamedTuple):
    """A tensor of the network, or a part of it, as all files hold it."""

    weights: Sequence[Tensor]
    """One tensor for each file, all of one shape, in float32 or wider."""
    base: Tensor | None = None
    """The same tensor of the base, for a merge that asks for one."""
    importance: Sequence[Tensor] | None = None
    """Its importance in each file, for a merge that asks for it; for complex weights, real."""
