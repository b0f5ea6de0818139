"""Reads the arguments and the result of a criterion that the user names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

from lightning_objectives.kinds import Problem

_PREDICTION_NAMES = frozenset(
    "input inputs logits logit y_hat yhat y_pred pred preds prediction predictions output outputs x".split()
)
_TARGET_NAMES = frozenset("target targets y y_true label labels actual actuals truth".split())


def loss_in(result: Any, name: str) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The loss in what a criterion returns, and how to put another one in its place.

    Raises:
        ValueError: there is none.

    >>> import torch
    >>> loss, rebuild = loss_in((torch.ones(()), {"extra": 1}), "loss_fn")
    >>> rebuild(2 * loss)
    (tensor(2.), {'extra': 1})
    """
    if isinstance(result, Tensor):
        return result, lambda loss: loss
    if isinstance(result, Mapping) and isinstance(result.get("loss"), Tensor):
        return result["loss"], lambda loss: {**result, "loss": loss}
    if isinstance(result, (tuple, list)) and result and isinstance(result[0], Tensor):
        return result[0], lambda loss: type(result)([loss, *result[1:]])
    raise ValueError(
        f"criterion={name!r} returned a {type(result).__name__}, in which there is no loss. It must return a tensor, a "
        "tuple that begins with one, or a dictionary with the key 'loss'."
    )


def problem_of(target: Tensor) -> Problem | None:
    """What floating-point targets of the shape of the predictions belong to; None if their numbers do not show it.

    >>> import torch
    >>> problem_of(torch.tensor([[0.2, 0.8]])), problem_of(torch.tensor([[1.0, 1.0]])), problem_of(torch.tensor([0.3]))
    ('classes', 'labels', None)
    """
    columns = target.shape[1] if target.dim() > 1 else 1
    if columns > 1 and bool((target >= 0).all()) and bool(((target.sum(1) - 1).abs() < 1e-3).all()):
        return "classes"
    if bool(((target == 0) | (target == 1)).all()):
        return "binary" if columns == 1 else "labels"
    return None


def places_of(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Any], spec: Any
) -> list[int]:
    """The positions among the leaves of the predictions, the target, and the other tensors, in this order."""
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    names = _names(function, args, kwargs, len(leaves), spec)
    differentiable = [i for i in tensors if leaves[i].requires_grad]
    floating = [i for i in tensors if leaves[i].is_floating_point() and names[i] not in _TARGET_NAMES]
    called = [i for i in tensors if names[i] in _PREDICTION_NAMES]
    first = next(iter(differentiable or called or floating or tensors), None)
    if first is None:
        return []
    others = [i for i in tensors if i != first]
    second = next((i for i in others if names[i] in _TARGET_NAMES), next((i for i in others if i > first), None))
    if second is None:
        return [first, *others]
    return [first, second, *(i for i in others if i != second)]


def _names(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], count: int, spec: Any
) -> list[str]:
    """The name of the parameter that each leaf belongs to; empty where it is unknown."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return [""] * count
    by_argument = {id(value): name for name, value in bound.arguments.items()}
    names: list[str] = []
    for value in (*args, *kwargs.values()):
        names += [by_argument.get(id(value), "")] * len(tree_flatten(value)[0])
    return names if len(names) == count else [""] * count
