"""Repeats on the M stacks of a wrapped head what the user's code does to the head's output."""

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
"""The names of the operations that can be repeated on each stack: pure functions without random draws."""


@dataclass(eq=False)
class _Node:
    """A tensor that was computed from the head's output, and how."""

    tensor: Tensor
    version: int
    repeat: Callable[[int], Tensor]
    """Computes the tensor for stack m in place of the head's output."""
    obstacle: str | None = None
    """The operation on the way here that cannot be repeated."""
    by_stack: dict[int, Tensor] = field(default_factory=dict)

    def at(self, m: int) -> Tensor:
        if m not in self.by_stack:
            self.by_stack[m] = self.repeat(m)
        return self.by_stack[m]


class Stacks:
    """Records the operations on a head's output at little cost, and repeats them for a criterion's input."""

    def __init__(self) -> None:
        self.count = 0
        self.head = ""
        """The path of the head, for messages."""
        self._nodes: dict[int, _Node] = {}  # by id: a node keeps its tensor alive, so that no other gets its id

    def start(self, output: Tensor, stacks: Tensor) -> None:
        """Let ``output`` (N, ...) stand for the ``stacks`` (M, N, ...) in the user's code."""
        self.count = len(stacks)
        parts = stacks.unbind(0)
        self._nodes[id(output)] = _Node(output, output._version, parts.__getitem__)

    def clear(self) -> None:
        """Forget all tensors at the end of a step."""
        self.count = 0
        self._nodes.clear()

    def follow(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Record that the user's code computed ``result`` by ``function(*args, **kwargs)``."""
        if not any(id(value) in self._nodes for value in _tensors((*args, *kwargs.values()))):
            return
        name = getattr(function, "__name__", repr(function))
        outputs = [result] if isinstance(result, Tensor) else result if isinstance(result, (tuple, list)) else []
        for position, output in enumerate(outputs):
            if not isinstance(output, Tensor):
                continue
            known = self._nodes.get(id(output))
            if known is not None:  # The function returned its own argument, as `.float()` of a float tensor does.
                if known.obstacle is None and output._version != known.version:
                    known.obstacle = f"{name} (in place)"
                continue
            whole = isinstance(result, Tensor)

            def repeat(m: int, position: int = position, whole: bool = whole) -> Tensor:
                value = function(*self._at(args, m), **{key: self._at(value, m) for key, value in kwargs.items()})
                return value if whole else value[position]  # type: ignore[no-any-return]  # what the function returns

            obstacle = self._obstacle(args, kwargs) or (None if name in FOLLOWED else name)
            self._nodes[id(output)] = _Node(output, output._version, repeat, obstacle)

    def of(self, tensor: Tensor) -> list[Tensor] | None:
        """Compute ``tensor`` for each stack; None if it was not computed from the head's output.

        Raises:
            ValueError: an operation on the way from the head cannot be repeated.
        """
        node = self._nodes.get(id(tensor))
        if node is None:
            return None
        obstacle = node.obstacle
        if obstacle is None and any(
            n.obstacle is None and n.tensor._version != n.version for n in self._nodes.values()
        ):
            obstacle = "an in-place change"
        if obstacle is not None:
            raise ValueError(
                f"The stacks cannot follow the logits from the head {self.head!r} to the loss: in between, your code "
                f"applies {obstacle!r}, which cannot be repeated on each stack. Casts, shapes, selections, arithmetic "
                "and link functions can. Pass `head=` with a module that lies after that operation."
            )
        return [node.at(m) for m in range(self.count)]

    def _obstacle(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        nodes = (self._nodes.get(id(value)) for value in _tensors((*args, *kwargs.values())))
        return next((node.obstacle for node in nodes if node is not None and node.obstacle is not None), None)

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
