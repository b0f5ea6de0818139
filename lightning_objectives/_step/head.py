"""Finds the head of a network, and the network of a head, by their names, and shows the head to methods."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

USUAL = ("head", "fc", "classifier", "linear", "lm_head", "decoder", "output", "out", "score")
"""The names that heads usually have; a name that comes earlier is tried first."""


def resolve(module: nn.Module, named: "str | nn.Module | None") -> tuple[str, nn.Module]:
    """Find the head, and return its path and its module.

    The first of these that exists is the head: the one that the user names, by ``head=`` or by the mixin's
    ``objective_head``; what timm's ``get_classifier`` returns; the last linear layer under one of the usual names; the
    last ``Linear``; the last convolution of single points. Such a convolution is a linear layer too.

    Raises:
        ValueError: the name does not exist, or nothing looks like a head.
    """
    paths = {child: path for path, child in module.named_modules()}
    if isinstance(named, nn.Module):
        if named not in paths:
            raise ValueError(
                f"The head {type(named).__name__} is no part of {type(module).__name__}, so the step never calls it. "
                "Name a module that is one."
            )
        return paths[named], named
    linears = {path: child for path, child in module.named_modules() if _is_linear(child)}
    if named is not None:
        try:
            return named, module.get_submodule(named)
        except AttributeError as error:
            known = ", ".join(list(linears)[-8:]) or "none"
            raise ValueError(
                f"head={named!r} does not exist in {type(module).__name__}. Its last Linear layers are: {known}."
            ) from error
    for child in module.modules():
        get_classifier: Any = getattr(child, "get_classifier", None)
        classifier = get_classifier() if callable(get_classifier) else None
        if isinstance(classifier, nn.Module) and classifier in paths and not isinstance(classifier, nn.Identity):
            return paths[classifier], classifier
    for name in USUAL:
        matches = [path for path in linears if path.rpartition(".")[2] == name]
        if matches:
            return matches[-1], linears[matches[-1]]
    plain = [path for path, child in linears.items() if isinstance(child, nn.Linear)]
    if linears:
        path = (plain or list(linears))[-1]
        return path, linears[path]
    raise ValueError(
        f"{type(module).__name__} has no Linear layer that could be its head. Name the module that turns features into "
        "logits with head='path.to.it'."
    )


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, for rows or for the points of an image."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return all(size == 1 for size in module.kernel_size)
    return isinstance(module, nn.Linear)


def network_of(module: nn.Module, head: str) -> nn.Module:
    """Find the module whose forward returns the logits.

    That is the one that the mixin names, or the child of ``module`` that contains the head, or ``module`` itself.

    >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 3)))
    >>> network_of(net, "0.0") is net[0], network_of(net[0], "0") is net[0]
    (True, True)
    """
    named = getattr(module, "objective_network", None)
    if isinstance(named, nn.Module):
        return named
    if named is not None:
        return module.get_submodule(named)
    child, _, rest = head.partition(".")
    return module.get_submodule(child) if rest else module


def by_position(value: Tensor, head: nn.Module | None) -> Tensor:
    """A head's input or output with one row for each position.

    >>> import torch
    >>> value = torch.zeros(2, 3, 5)
    >>> by_position(value, nn.Linear(5, 4)).shape, by_position(value, nn.Conv1d(3, 4, 1)).shape
    (torch.Size([6, 5]), torch.Size([10, 3]))
    """
    if value.dim() < 2:
        return value[:, None]
    points = isinstance(head, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return (value.movedim(1, -1) if points else value).flatten(0, -2)


def path_of(module: nn.Module, child: nn.Module) -> str:
    """The path of a part of a module.

    >>> net = nn.Sequential(nn.ReLU())
    >>> path_of(net, net[0])
    '0'
    """
    paths: dict[nn.Module, str] = {other: path for path, other in module.named_modules()}
    return paths[child]


def view_of(head: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """The head as methods see it: of its class, with its weights, but nobody hears of its calls.

    Hooks stay out, because they ran when the user's code called the head: a hook of spectral norm, say, steps the norm.

    >>> head = nn.Linear(2, 3)
    >>> view = view_of(head, head.forward)
    >>> isinstance(view, nn.Linear), view.weight is head.weight
    (True, True)
    """
    view: nn.Module = object.__new__(type(head))
    attributes = vars(head)
    hooks: dict[str, Any] = {name: OrderedDict() for name in attributes if name.startswith("_") and "_hooks" in name}
    vars(view).update({**attributes, **hooks, "forward": forward, "_compiled_call_impl": None})
    return view
