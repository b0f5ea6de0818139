"""Reads the autograd graph: where a tensor came from, and whether a loss is a scaled value."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node


def came_from(logits: Tensor, output: Tensor) -> bool:
    """Whether ``logits`` was computed from ``output`` alone, by casts, shapes, scales and link functions.

    The walk goes back over nodes of the graph with a single input that needs a gradient.

    >>> import torch
    >>> output = torch.ones(2, 3, requires_grad=True) * 1
    >>> came_from((output.float() / 2).log_softmax(-1), output), came_from(output + output.exp(), output)
    (True, False)
    """
    if logits is output:
        return True
    goal, node = output.grad_fn, logits.grad_fn
    while node is not None and node is not goal:
        inputs = [parent for parent, _ in node.next_functions if parent is not None]
        node = inputs[0] if len(inputs) == 1 else None
    return goal is not None and node is goal


def reaches(loss: Tensor, value: Tensor) -> bool:
    """Whether ``loss`` was computed from ``value``.

    >>> import torch
    >>> value = torch.ones(3, requires_grad=True) * 1
    >>> reaches(value.exp().sum(), value), reaches(value, value.exp())
    (True, False)
    """
    if loss is value or loss.grad_fn is None or value.grad_fn is None:
        return loss is value
    return any(node is value.grad_fn for node in _inputs_first(loss.grad_fn))


def holds(loss: Tensor, function: str) -> bool:
    """Whether a ``torch.autograd.Function`` of this name lies on the way to the loss.

    >>> import torch
    >>> holds(torch.ones(3, requires_grad=True).exp().sum(), "CheckpointFunction")
    False
    """
    name = f"{function}Backward"
    return loss.grad_fn is not None and any(node.name() == name for node in _inputs_first(loss.grad_fn))


_AFFINE = (
    "Add Sub RSub Neg Mean Sum View UnsafeView Reshape ReshapeAlias Select Slice Index Stack Cat Clone ToCopy Squeeze "
    "Unsqueeze Expand MaskedSelect Permute Transpose Alias Where MaskedFill Unbind Split SplitWithSizes Nansum Topk "
    "Sort Gather IndexSelect Max Min Amax Amin Repeat Flip Roll T ConstantPadNd CopySlices CopyBackwards IndexPut "
    "IndexAdd Scatter ScatterAdd MaskedScatter Cumsum Diagonal Take"
).split()
_BILINEAR = ("Mul", "Dot", "Mv", "Mm")


def is_affine_in(loss: Tensor, value: Tensor) -> bool:
    """Whether ``loss`` is a scaled ``value`` plus terms without it, as far as the graph shows.

    >>> import torch
    >>> value = torch.ones(3, requires_grad=True) * 1
    >>> is_affine_in((value * 2).mean() + 1, value), is_affine_in((value * (-value).exp()).mean(), value)
    (True, False)
    """
    return loss is value or (value.grad_fn is not None and loss.grad_fn is not None and _affine(loss, value))


def _affine(loss: Tensor, value: Tensor) -> bool:
    goal = value.grad_fn
    holds: dict[Node | None, bool] = {}  # whether the value is anywhere behind a node
    assert loss.grad_fn is not None
    for node in _inputs_first(loss.grad_fn):
        holds[node] = node is goal or any(holds.get(parent, False) for parent, _ in node.next_functions)
    if not holds[loss.grad_fn]:
        return False
    for node in (node for node, is_held in holds.items() if node is not None and is_held and node is not goal):
        places = [i for i, (parent, _) in enumerate(node.next_functions) if holds.get(parent, False)]
        name = node.name().removesuffix("Backward0").removesuffix("Backward1").removesuffix("Backward")
        linear = name in _AFFINE or (name in _BILINEAR and len(places) == 1) or (name == "Div" and places == [0])
        if not linear:
            return False
    return True


def _inputs_first(root: Node) -> Iterator[Node]:
    visited: set[Any] = set()
    pending = [(root, False)]
    while pending:
        node, inputs_done = pending.pop()
        if inputs_done:
            yield node
        elif node not in visited:
            visited.add(node)
            pending.append((node, True))
            pending.extend((parent, False) for parent, _ in node.next_functions if parent is not None)
