"""Catches the criterion's calls, and splits each into what it compares, its unreduced losses and their reduction."""

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

_PARAMETERS: dict[Any, tuple[str, ...]] = {
    function: tuple(inspect.signature(function).parameters)
    for function in (
        F.cross_entropy,
        F.nll_loss,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.mse_loss,
    )
}
"""The criteria that are caught, each with the names of its parameters."""
_BY_CLASS = (F.cross_entropy, F.nll_loss)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a criterion by the user's code.

    ``elements`` has one loss for each comparison. Its shape is (N, d1, ...) if the classes lie along dimension 1 of the
    input (cross entropy, NLL), and the shape of the input otherwise.
    """

    function: Callable[..., Tensor]
    input: Tensor
    target: Tensor
    options: dict[str, Any]
    """All other arguments of the call, without the reduction."""
    reduction: str
    """``mean``, ``sum`` or ``none``."""
    by_class: bool
    """Whether the classes lie along dimension 1 of the input."""

    def value(self) -> Tensor:
        """What the criterion itself returns to the user's code."""
        return self.function(self.input, self.target, reduction=self.reduction, **self.options)

    @cached_property
    def elements(self) -> Tensor:
        """The unreduced losses."""
        return self.function(self.input, self.target, reduction="none", **self.options)

    def on(self, input: Tensor) -> "Call":
        """The same call with another input of the same shape."""
        return replace(self, input=input)

    def rows(self, tensor: Tensor) -> Tensor:
        """The input (or a target of its shape) with one row for each comparison, the classes last."""
        return tensor.movedim(1, -1).flatten(0, -2) if self.by_class and tensor.dim() > 2 else tensor

    @property
    def indexed(self) -> bool:
        """Whether the target holds class indices."""
        return self.by_class and not self.target.is_floating_point()

    @cached_property
    def valid(self) -> Tensor | None:
        """Which elements count, as a mask of their shape; None if all of them count."""
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
        """Reduce elements of this call, possibly weighted, as the user's code asked."""
        if self.reduction == "none":
            return elements
        total = elements.sum()
        return total / self.denominator if self.reduction == "mean" else total


def parse(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Read the arguments of a call of one of torch's criteria."""
    options = {**dict(zip(_PARAMETERS[function], args)), **kwargs}
    legacy = options.pop("size_average", None), options.pop("reduce", None)
    reduction = options.pop("reduction", "mean")
    if legacy != (None, None):
        reduction = legacy_get_string(*legacy, emit_warning=False)
    input, target = options.pop("input"), options.pop("target")
    if function in _BY_CLASS:
        options.setdefault("ignore_index", -100)
    return Call(function, input, target, options, reduction, by_class=function in _BY_CLASS)


class CriterionMode(TorchFunctionMode):
    """Replaces the calls of torch's criteria by ``on_call``, and shows all other calls to the stacks."""

    def __init__(self, on_call: Callable[[Call], Tensor] | None, stacks: Stacks | None = None) -> None:
        super().__init__()
        self.on_call = on_call
        self.stacks = stacks or Stacks()
        self.reads = False
        """Whether the mode only notes the criteria's calls, which does not break a graph of torch.compile."""
        self.whole = False
        """Whether it also notes those in a graph of torch.compile: their value is the loss, and can be replaced."""
        self.notes: list[tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch calls this for every torch function of the user's step."""
        kwargs = kwargs or {}
        # The order matters to torch.compile: a network then does not depend on these flags, and a step not on `reads`,
        # so that each is compiled only once.
        noted = func in _PARAMETERS and ((self.whole and torch.compiler.is_compiling()) or self.reads)
        if func in _PARAMETERS and self.on_call is not None and not noted:
            return self.on_call(parse(func, args, kwargs))
        result = func(*args, **kwargs)
        if noted:
            self.notes.append((func, args, kwargs, result))
        if self.stacks.count:
            self.stacks.follow(func, args, kwargs, result)
        return result

    def noted_calls(self) -> list[tuple[Call, Tensor]]:
        """The noted calls that a gradient flows through, each with its value."""
        calls = [(parse(function, args, kwargs), value) for function, args, kwargs, value in self.notes]
        return [(call, value) for call, value in calls if call.input.requires_grad and value.requires_grad]


class Named:
    """Takes apart a criterion that the user names by its path: any ``(input, target) -> loss`` that acts row by row.

    The unreduced losses are those of batches of one row, by ``vmap``. The first call proves that their mean or their
    sum is what the criterion itself returns.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.reduction: str | None = None

    def parse(self, inner: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Read the arguments of a call of this criterion.

        Raises:
            ValueError: the call is not ``criterion(input, target)``, or the criterion does not act row by row.
        """
        if len(args) != 2 or kwargs or not all(isinstance(arg, Tensor) for arg in args):
            raise ValueError(
                f"Your code calls criterion={self.path!r} with {len(args)} positional arguments and the keywords "
                f"{sorted(kwargs)}, which do not say what it compares. Call it as criterion(input, target) with two "
                "tensors."
            )
        input, target = args
        plain = inner  # Other patches of this criterion must see the user's own call only, not the calls below.
        while isinstance(plain, Patch):
            plain = plain.inner

        def by_rows(input: Tensor, target: Tensor) -> Tensor:
            return torch.func.vmap(lambda x, t: plain(x[None], t[None]).squeeze(0))(input, target)

        def function(input: Tensor, target: Tensor, *, reduction: str) -> Tensor:
            return by_rows(input, target) if reduction == "none" else inner(input, target)

        if self.reduction is None:
            with torch.no_grad():
                self.reduction = self._find_reduction(plain(input, target), by_rows(input, target))
        by_class = not target.is_floating_point() or (input.shape == target.shape and input.dim() > 1)
        return Call(function, input, target, {}, self.reduction, by_class=by_class)

    def _find_reduction(self, value: Tensor, elements: Tensor) -> str:
        for name, candidate in (("none", elements), ("mean", elements.mean()), ("sum", elements.sum())):
            if candidate.shape == value.shape and torch.allclose(candidate, value, rtol=1e-4, atol=1e-6):
                return name
        raise ValueError(
            f"criterion={self.path!r} returned {value.flatten()[:3].tolist()} for a batch, but its losses for the rows "
            f"one by one have the mean {elements.mean().item():.6g} and the sum {elements.sum().item():.6g}: it does "
            "not act row by row, so there are no per-sample losses. Name a criterion that acts row by row, or remove "
            "the callback."
        )


def locate(module: nn.Module, path: str) -> tuple[object, str]:
    """Find what to patch to catch a named criterion: the owner and the attribute behind a dotted path.

    Raises:
        ValueError: there is nothing callable under that path.
    """
    *parents, name = path.split(".")
    owner: object = module
    for part in parents:
        owner = getattr(owner, part, None)
    criterion = getattr(owner, name, None)
    if not callable(criterion):
        children = ", ".join(name for name, _ in module.named_children())
        raise ValueError(
            f"criterion={path!r} names nothing callable on {type(module).__name__}, so there is no call to catch. Its "
            f"children are: {children}."
        )
    return (criterion, "forward") if isinstance(criterion, nn.Module) else (owner, name)
