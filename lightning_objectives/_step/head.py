"""Finds the network's head by name, and proves on the first batch that the criterion's input came from it."""

from typing import Any

from torch import nn

USUAL = ("head", "fc", "classifier", "linear", "lm_head", "decoder", "output", "out", "score")
"""The names that heads usually have, in the order in which they are believed."""


def resolve(module: nn.Module, named: "str | nn.Module | None") -> tuple[str, nn.Module]:
    """The path and the module of the head.

    In this order: what is named (by ``head=`` or by the mixin's ``objective_head``); what timm's ``get_classifier``
    gives; a ``Linear`` under one of the usual names, the last one if there are several; the last ``Linear``.

    Raises:
        ValueError: the name does not exist, or nothing looks like a head.
    """
    paths = {child: path for path, child in module.named_modules()}
    if isinstance(named, nn.Module):
        if named not in paths:
            raise ValueError(f"The head {type(named).__name__} is no part of {type(module).__name__}.")
        return paths[named], named
    linears = {path: child for path, child in module.named_modules() if isinstance(child, nn.Linear)}
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
        found = [path for path in linears if path.rpartition(".")[2] == name]
        if found:
            return found[-1], linears[found[-1]]
    if linears:
        path = list(linears)[-1]
        return path, linears[path]
    raise ValueError(
        f"{type(module).__name__} has no Linear layer that could be its head; name the module that turns features into "
        "logits with head='path.to.it'."
    )


def is_compiled(module: nn.Module, path: str) -> bool:
    """Whether the child at ``path``, or anything that it lies in, is compiled: hooks and patches may not fire there."""
    parts = path.split(".")
    above = [module.get_submodule(".".join(parts[:n])) for n in range(len(parts) + 1)]
    whole = getattr(module, "_compiler_ctx", None) is not None  # Lightning's mark of a module that is compiled itself
    return whole or any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in above)


def network_of(module: nn.Module, head: str) -> nn.Module:
    """The module whose forward gives the logits: what the mixin names, or the child that holds the head, or the module.

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
