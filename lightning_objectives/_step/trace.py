"""Records what the user's code does to a head's output, and repeats it on other tensors in its place."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CASTS = frozenset("float double half bfloat16 long int to type type_as contiguous clone".split())
SHAPES = frozenset("view view_as reshape reshape_as flatten unflatten squeeze unsqueeze".split())
MOVES = frozenset(
    "permute transpose swapaxes movedim t expand expand_as chunk split unbind repeat repeat_interleave".split()
)
JOINS = frozenset("cat concat stack".split())
SELECTIONS = frozenset("__getitem__ narrow select index_select masked_select gather take_along_dim".split())
VALUES = frozenset(
    (
        "mul multiply div divide true_divide add sub subtract neg negative rsub __mul__ __rmul__ __truediv__ __add__ "
        "__radd__ __sub__ __rsub__ __neg__ log_softmax softmax logsigmoid log_sigmoid sigmoid tanh clamp clip "
        "masked_fill where normalize"
    ).split()
)
"""Operations that keep each number at its place."""
RESIZES = frozenset({"interpolate"})
INDICATORS = frozenset({"one_hot"})
FOLLOWED = CASTS | SHAPES | MOVES | JOINS | SELECTIONS | VALUES | RESIZES | INDICATORS
"""The names of the operations that can be repeated: pure functions without random draws."""


@dataclass(eq=False)
class Node:
    """A tensor that was computed from the head's output, or from a tensor of the batch, and how."""

    tensor: Tensor
    version: int
    function: Callable[..., Any] | None = None
    """None for the head's output, or the tensor of the batch, itself."""
    args: tuple[Any, ...] = ()
    """The arguments, with nodes in place of tensors that were computed from the output."""
    kwargs: Any = None
    position: int | None = None
    """Which one of the function's results the tensor is; None if it is the result."""
    obstacle: str | None = None
    """The operation on the way here that cannot be repeated."""
    of_batch: bool = False
    """Whether it was computed from tensors of the batch alone."""

    @property
    def name(self) -> str:
        """The name of the operation."""
        return getattr(self.function, "__name__", repr(self.function))

    def sources(self) -> list["Node"]:
        """The nodes whose places its own places come from: not those that only say where to look, such as an index."""
        whole = self.name in VALUES | JOINS
        nodes = _nodes((self.args, self.kwargs)) if whole else [arg for arg in self.args[:1] if isinstance(arg, Node)]
        return [node for node in nodes if node.of_batch == self.of_batch]

    def roots(self) -> set["Node"]:
        """Where its places come from."""
        return {self} if self.function is None else set().union(*(node.roots() for node in self.sources()))

    def with_all_before(self) -> set["Node"]:
        """The node, and all that it was computed from."""
        nodes, waiting = {self}, [self]
        while waiting:
            node = waiting.pop()
            fresh = {*_nodes((node.args, node.kwargs))} - nodes
            nodes |= fresh
            waiting += fresh
        return nodes

    def run(self, of: Callable[["Node"], Any], *, first_alone: bool = False) -> Any:
        """Repeat the operation on what ``of`` gives for each node among its arguments, or for the first alone."""
        assert self.function is not None
        others = (lambda node: node.tensor) if first_alone else of
        args = (*_replaced(self.args[:1], of), *_replaced(self.args[1:], others))
        result = self.function(*args, **_replaced(self.kwargs, others))
        return result if self.position is None else result[self.position]


class Trace:
    """Records at little cost the operations on the output of a head, and on the tensors of the batch.

    What is computed from the batch by other operations, such as those of the network, is not recorded.
    """

    def __init__(self) -> None:
        self.output: Node | None = None
        """The node of the head's output; None before the head is called."""
        self.has_output = False
        """Whether the head was called: a flag, on which a graph of torch.compile may depend."""
        self.active = False
        """Whether anything is recorded."""
        self._nodes: dict[int, Node] = {}  # by id: a node keeps its tensor alive, so that no other gets its id

    def start(self, output: Tensor) -> None:
        """Record what happens to the head's output."""
        self.output = self._nodes[id(output)] = Node(output, output._version)
        self.active = self.has_output = True

    def start_batch(self, tensors: Iterable[Tensor]) -> None:
        """Record what happens to the tensors of the batch."""
        for tensor in tensors:
            if tensor.is_inference():
                continue
            self._nodes[id(tensor)] = Node(tensor, tensor._version, of_batch=True)
            self.active = True

    def stop(self) -> None:
        """Record no more, and forget all tensors."""
        self.output, self.active, self.has_output = None, False, False
        self._nodes.clear()

    def follow(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Record that the user's code computed ``result`` by ``function(*args, **kwargs)``."""
        args, kwargs = self._linked((args, kwargs))
        nodes = list(_nodes((args, kwargs)))
        if not nodes:
            return
        obstacle = next((node.obstacle for node in nodes if node.obstacle is not None), None)
        of_batch = all(node.of_batch for node in nodes)
        name = getattr(function, "__name__", repr(function))
        first = args[0] if args else None
        if of_batch and (name not in FOLLOWED or not (name in VALUES | JOINS or isinstance(first, Node))):
            return  # Also what a table holds at indices from the batch.
        outputs = [result] if isinstance(result, Tensor) else result if isinstance(result, (tuple, list)) else []
        for position, output in enumerate(outputs):
            if not isinstance(output, Tensor) or output.is_inference():
                continue  # What is computed in inference mode reaches no loss.
            known = self._nodes.get(id(output))
            if known is not None and output._version == known.version:
                continue  # The function returned its own argument, as `.float()` of a float tensor does.
            if known is not None:
                function, name = _out_of_place(function, name)
            obstacle = obstacle or (None if name in FOLLOWED else name)
            place = None if isinstance(result, Tensor) else position
            self._nodes[id(output)] = Node(output, output._version, function, args, kwargs, place, obstacle, of_batch)

    def node_of(self, tensor: Any) -> Node | None:
        """The node of a tensor that was computed from the output; None for any other tensor."""
        node = self._nodes.get(id(tensor))
        if node is None or node.obstacle is not None:
            return node
        # A tensor that does not lie on the way, such as the state of a metric, may change.
        on_the_way = (self._nodes[id(other.tensor)] for other in node.with_all_before() if not other.of_batch)
        if any(latest.tensor._version != latest.version for latest in on_the_way):
            return Node(node.tensor, node.version, obstacle="an in-place change")
        return node

    def _linked(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._nodes.get(id(value), value)
        if isinstance(value, dict):
            return {key: self._linked(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            return type(value)(map(self._linked, value)) if not hasattr(value, "_fields") else value
        return value


class Replay:
    """Computes nodes again, each once, with another tensor in place of the one where they begin.

    Args:
        root: the node where they begin.
        start: what stands in its place.
        run: repeats one operation; by default the operation itself.
    """

    def __init__(self, root: Node, start: Tensor, run: Callable[[Node, Callable[[Node], Any]], Any] = Node.run) -> None:
        self._values: dict[Node, Any] = {root: start}
        self._of_batch = root.of_batch
        self._run = run

    def __call__(self, node: Node) -> Any:
        """What the node is with that start."""
        if node.of_batch and not self._of_batch:
            return node.tensor  # What comes from the batch stays as it is.
        if node not in self._values:
            self._values[node] = self._run(node, self)
        return self._values[node]


def _out_of_place(function: Any, name: str) -> tuple[Any, str]:
    """The function that returns what an in-place function writes, as `mul` for `mul_` and `__imul__`."""
    plain = f"__{name[3:]}" if name.startswith("__i") else name[:-1] if name.endswith("_") else ""
    other = getattr(Tensor, plain, None) if plain in FOLLOWED else None
    return (function, f"{name} (in place)") if other is None else (other, plain)


def _replaced(value: Any, of: Callable[[Node], Any]) -> Any:
    if isinstance(value, Node):
        return of(value)
    if isinstance(value, dict):
        return {key: _replaced(item, of) for key, item in value.items()}
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size) and not hasattr(value, "_fields"):
        return type(value)(_replaced(item, of) for item in value)
    return value


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _nodes(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _nodes(item)
