"""The M stacks of a wrapped head follow what the user's code does to the head's output."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_CASTS = "float double half bfloat16 to type type_as contiguous clone"
_SHAPES = (
    "view view_as reshape reshape_as flatten unflatten squeeze unsqueeze permute transpose swapaxes movedim t expand "
    "expand_as chunk split unbind"
)
_SELECTIONS = "__getitem__ narrow select index_select masked_select"
_ARITHMETIC = (
    "mul multiply div divide true_divide add sub subtract neg negative rsub __mul__ __rmul__ __truediv__ __add__ "
    "__radd__ __sub__ __rsub__ __neg__"
)
_LINKS = "log_softmax softmax logsigmoid sigmoid tanh clamp clip"
FOLLOWED = frozenset(f"{_CASTS} {_SHAPES} {_SELECTIONS} {_ARITHMETIC} {_LINKS}".split())
"""The operations that are repeated on each stack, by name: pure functions without random draws."""


@dataclass(eq=False)
class _Node:
    """A tensor that came from the head's output, and how."""

    tensor: Tensor
    version: int
    make: Callable[[int], Tensor]
    """What the tensor would be if the head had given stack m."""
    lost: str | None = None
    """The operation at which the trace ended."""
    made: dict[int, Tensor] = field(default_factory=dict)

    def at(self, m: int) -> Tensor:
        if m not in self.made:
            self.made[m] = self.make(m)
        return self.made[m]


class Stacks:
    """Records, cheaply, the operations on a head's output, and repeats them on the stacks when a criterion asks."""

    def __init__(self) -> None:
        self.count = 0
        self._nodes: dict[int, _Node] = {}  # a node keeps its tensor alive, so that an id stays its own

    def start(self, output: Tensor, stacks: Tensor) -> None:
        """``output`` (N, ...) stands for the ``stacks`` (M, N, ...) in the user's code."""
        self.count = len(stacks)
        parts = stacks.unbind(0)
        self._nodes[id(output)] = _Node(output, output._version, parts.__getitem__)

    def clear(self) -> None:
        """Forget everything: the step is over."""
        self.count = 0
        self._nodes.clear()

    def follow(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Record that the user's code got ``result`` from ``function(*args, **kwargs)``."""
        if not any(id(value) in self._nodes for value in _tensors((*args, *kwargs.values()))):
            return
        name = getattr(function, "__name__", repr(function))
        outputs = [result] if isinstance(result, Tensor) else result if isinstance(result, (tuple, list)) else []
        for position, output in enumerate(outputs):
            if not isinstance(output, Tensor):
                continue
            known = self._nodes.get(id(output))
            if known is not None:  # `.float()` of a float is the tensor itself
                known.lost = known.lost or (f"{name} (in place)" if output._version != known.version else None)
                continue
            whole = isinstance(result, Tensor)

            def make(m: int, position: int = position, whole: bool = whole) -> Tensor:
                made = function(*self._at(args, m), **{key: self._at(value, m) for key, value in kwargs.items()})
                return made if whole else made[position]  # type: ignore[no-any-return]  # what the function returns

            lost = self._lost(args, kwargs) or (None if name in FOLLOWED else name)
            self._nodes[id(output)] = _Node(output, output._version, make, lost)

    def of(self, tensor: Tensor) -> list[Tensor] | None:
        """What ``tensor`` would be for each stack; None where it did not come from the head.

        Raises:
            ValueError: it came from the head through something that cannot be repeated.
        """
        node = self._nodes.get(id(tensor))
        if node is None:
            return None
        if node.lost is None:
            changed = [n for n in self._nodes.values() if n.lost is None and n.tensor._version != n.version]
            if changed:
                node.lost = "an in-place change"
        if node.lost is not None:
            raise ValueError(
                f"Between the head and the criterion there is {node.lost!r}, which cannot be repeated on the head's "
                "stacks. Casts, shapes, selections, arithmetic and link functions can; or name a head behind it: head=."
            )
        return [node.at(m) for m in range(self.count)]

    def _lost(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        found = (self._nodes.get(id(value)) for value in _tensors((*args, *kwargs.values())))
        return next((node.lost for node in found if node is not None and node.lost is not None), None)

    def _at(self, value: Any, m: int) -> Any:
        if isinstance(value, Tensor):
            node = self._nodes.get(id(value))
            return value if node is None else node.at(m)
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            return type(value)(self._at(item, m) for item in value)
        return value


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
