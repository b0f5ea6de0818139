"""The criterion: one call of it, taken apart into what is compared, the unreduced losses and how they are reduced."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn._reduction import legacy_get_string
from torch.overrides import TorchFunctionMode

from lightning_objectives._step.stacks import Stacks
from lightning_objectives._trainer.patch import Patch

_CAUGHT: dict[Any, tuple[str, ...]] = {
    function: tuple(inspect.signature(function).parameters)
    for function in (
        F.cross_entropy,
        F.nll_loss,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.mse_loss,
    )
}
"""The functions that are caught, with the names of their parameters."""
_BY_CLASS = (F.cross_entropy, F.nll_loss)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a criterion as the user's code made it.

    ``elements`` has one loss for each thing compared: (N, d1, ...) where the classes lie along dimension 1 of the
    input (cross entropy, NLL), the shape of the input otherwise.
    """

    function: Callable[..., Tensor]
    input: Tensor
    target: Tensor
    options: dict[str, Any]
    """Everything else that the criterion was called with, the reduction aside."""
    reduction: str
    """``mean``, ``sum`` or ``none``."""
    by_class: bool
    """Whether the classes lie along dimension 1 of the input."""

    def value(self) -> Tensor:
        """What the user's code would have got."""
        return self.function(self.input, self.target, reduction=self.reduction, **self.options)

    @cached_property
    def elements(self) -> Tensor:
        """The unreduced losses."""
        return self.function(self.input, self.target, reduction="none", **self.options)

    def on(self, input: Tensor) -> "Call":
        """The same call with another input of the same shape."""
        return replace(self, input=input)

    def rows(self, tensor: Tensor) -> Tensor:
        """The input (or a target of its shape) with one row for each thing compared, the classes last."""
        return tensor.movedim(1, -1).flatten(0, -2) if self.by_class and tensor.dim() > 2 else tensor

    @property
    def indexed(self) -> bool:
        """Whether the target holds class indices."""
        return self.by_class and not self.target.is_floating_point()

    @cached_property
    def valid(self) -> Tensor | None:
        """The elements that count, as a mask of their shape; None where all do."""
        ignored = self.options.get("ignore_index")
        return None if ignored is None or not self.indexed else self.target != ignored

    @cached_property
    def denominator(self) -> Tensor | int:
        """What ``reduction="mean"`` divides the sum of the elements by."""
        if not self.by_class:
            return self.input.numel()
        if not self.indexed:
            return self.input.numel() // self.input.shape[min(1, self.input.dim() - 1)]
        weight: Tensor | None = self.options.get("weight")
        if weight is None:
            return self.target.numel() if self.valid is None else self.valid.sum()
        if self.valid is None:
            return weight[self.target].sum()
        return (weight[torch.where(self.valid, self.target, 0)] * self.valid).sum()

    def reduce(self, elements: Tensor) -> Tensor:
        """Elements of this call, possibly weighted, reduced as the user's code asked."""
        if self.reduction == "none":
            return elements
        total = elements.sum()
        return total / self.denominator if self.reduction == "mean" else total


def parse(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call of one of torch's criteria."""
    given = {**dict(zip(_CAUGHT[function], args)), **kwargs}
    legacy = given.pop("size_average", None), given.pop("reduce", None)
    reduction = given.pop("reduction", "mean")
    if legacy != (None, None):
        reduction = legacy_get_string(*legacy, emit_warning=False)
    input, target = given.pop("input"), given.pop("target")
    if function in _BY_CLASS:
        given.setdefault("ignore_index", -100)
    return Call(function, input, target, given, reduction, by_class=function in _BY_CLASS)


class CriterionMode(TorchFunctionMode):
    """Hands the calls of torch's criteria to ``caught``, and lets the stacks follow; all else passes."""

    def __init__(self, caught: Callable[[Call], Tensor] | None, stacks: Stacks | None = None) -> None:
        super().__init__()
        self.caught = caught
        self.stacks = stacks or Stacks()
        self.reads = False
        """Whether criteria are not handed on but noted, which a graph of torch.compile is not broken by."""
        self.whole = False
        """Whether those in a graph of torch.compile are noted too: what they give is the loss, and can be replaced."""
        self.seen: list[tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for every torch function of the user's step."""
        kwargs = kwargs or {}
        # in this order: a network knows nothing of it, and a step not of `reads`, and they are compiled once
        noted = func in _CAUGHT and ((self.whole and torch.compiler.is_compiling()) or self.reads)
        if func in _CAUGHT and self.caught is not None and not noted:
            return self.caught(parse(func, args, kwargs))
        result = func(*args, **kwargs)
        if noted:
            self.seen.append((func, args, kwargs, result))
        if self.stacks.count:
            self.stacks.follow(func, args, kwargs, result)
        return result

    def taken(self) -> list[tuple[Call, Tensor]]:
        """The calls that were noted, of which a gradient is asked, and their values."""
        calls = [(parse(function, args, kwargs), value) for function, args, kwargs, value in self.seen]
        return [(call, value) for call, value in calls if call.input.requires_grad and value.requires_grad]


class Named:
    """A criterion that the user named by its path: any callable ``(input, target) -> loss`` that acts row by row.

    Its unreduced losses are those of batches of one, by ``vmap``; the first call proves that their mean or their sum
    is what the criterion itself gives.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.reduction: str | None = None

    def parse(self, inner: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """The call of this criterion.

        Raises:
            ValueError: the criterion takes something else than ``(input, target)``, or does not act row by row.
        """
        if len(args) != 2 or kwargs or not all(isinstance(arg, Tensor) for arg in args):
            raise ValueError(
                f"criterion={self.path!r} is called with {len(args)} positional arguments and {sorted(kwargs)}; it "
                "must be called as criterion(input, target) with two tensors."
            )
        input, target = args
        users = inner  # others that caught the same criterion hear of the one call that the user's code makes
        while isinstance(users, Patch):
            users = users.inner

        def by_rows(input: Tensor, target: Tensor) -> Tensor:
            return torch.func.vmap(lambda x, t: users(x[None], t[None]).squeeze(0))(input, target)

        def function(input: Tensor, target: Tensor, *, reduction: str) -> Tensor:
            return by_rows(input, target) if reduction == "none" else inner(input, target)

        if self.reduction is None:
            with torch.no_grad():
                self.reduction = self._find_reduction(users(input, target), by_rows(input, target))
        by_class = not target.is_floating_point() or (input.shape == target.shape and input.dim() > 1)
        return Call(function, input, target, {}, self.reduction, by_class=by_class)

    def _find_reduction(self, value: Tensor, elements: Tensor) -> str:
        for name, candidate in (("none", elements), ("mean", elements.mean()), ("sum", elements.sum())):
            if candidate.shape == value.shape and torch.allclose(candidate, value, rtol=1e-4, atol=1e-6):
                return name
        raise ValueError(
            f"criterion={self.path!r} gave {value.flatten()[:3].tolist()} for a batch whose rows, one by one, give a "
            f"mean of {elements.mean().item():.6g} and a sum of {elements.sum().item():.6g}: it does not act row by "
            "row, so there are no per-sample losses. Name a criterion that does, or take the plug-in out."
        )


def locate(module: nn.Module, path: str) -> tuple[object, str]:
    """The owner and the attribute behind a dotted path from the module: what is patched to catch a named criterion.

    Raises:
        ValueError: there is nothing callable under that path.
    """
    *parents, name = path.split(".")
    owner: object = module
    for part in parents:
        owner = getattr(owner, part, None)
    found = getattr(owner, name, None)
    if not callable(found):
        children = ", ".join(name for name, _ in module.named_children())
        raise ValueError(
            f"criterion={path!r} names nothing callable on {type(module).__name__}; its children are: {children}."
        )
    return (found, "forward") if isinstance(found, nn.Module) else (owner, name)
