"""Splits a call of a criterion into what it compares, its unreduced losses, and how they become one value."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string

from lightning_objectives.kinds import Problem

TARGETS: dict[Problem | None, str] = {
    "classes": "its targets are one class of several",
    "binary": "its targets are one of two classes with one logit",
    "labels": "its targets are several labels that may hold together",
    "regression": "its targets are numbers (a regression)",
    "distribution": "its targets are distributions",
    None: "its targets are numbers that show neither classes nor labels",
}
"""What a criterion of each problem compares with, for messages; None for an unknown problem."""
MEANS = ("mean", "batchmean")
"""The reductions that divide by something."""


class Call(ABC):
    """One call of a criterion by the user's code.

    ``elements`` has one loss for each comparison. Its shape is (N, d1, ...) if the classes lie along dimension 1 of the
    input (``by_class``), and the broadcast shape of input and target otherwise.
    """

    name: str
    """The name of the criterion, for messages."""
    input: Tensor
    target: Tensor
    reduction: str
    """``mean``, ``sum``, ``batchmean`` or ``none``."""
    by_class: bool
    """Whether the classes lie along a dimension of the input that the losses do not have."""
    class_dim: int | None = 1
    """That dimension; it is 0 for an input of one dimension."""
    probabilities = False
    """Whether the input holds probabilities in place of logits."""

    @abstractmethod
    def value(self) -> Tensor:
        """What the criterion itself returns to the user's code."""

    @property
    @abstractmethod
    def elements(self) -> Tensor:
        """The unreduced losses."""

    @abstractmethod
    def on(self, substitute: Callable[[Tensor], Tensor]) -> "Call":
        """The same call with other tensors in place of its own."""

    @abstractmethod
    def with_targets_of(self, rows: Tensor) -> "Call":
        """The same call, in which row n is compared with the target of row ``rows[n]``."""

    @property
    def valid(self) -> Tensor | None:
        """Which elements count, as a mask of their shape; None if all of them count."""
        return None

    @property
    def counted(self) -> Tensor | None:
        """Which targets are not to be ignored, as far as the arguments say it; None if all are."""
        return self.valid

    @property
    def parts(self) -> Tensor | None:
        """What each element adds to the divisor of a mean, in the shape of the elements; None if each adds 1."""
        return None

    @property
    def divisor(self) -> Tensor | int:
        """What a mean divides the sum of the elements by: the criterion's own number, whatever it is."""
        return self.elements.numel() if self.parts is None else self.parts.sum()

    def summed(self, weights: Tensor) -> Tensor:
        """The elements times their weights, summed unless the criterion returns them as they are."""
        # 0 * inf is NaN, so a weight of 0 must replace the loss instead of multiplying it.
        weighted = torch.where(weights == 0, 0.0, self.elements * weights)
        return weighted.sum() if self.is_reduced else weighted

    def weighted(self, weights: Tensor) -> Tensor:
        """The value with weights of the shape of the elements; with weights of one it is the plain value."""
        total = self.summed(weights)
        return total / self.divisor if self.divides else total

    @property
    def is_reduced(self) -> bool:
        """Whether the user's code gets one number, and not a loss for each element."""
        return self.reduction != "none"

    @property
    def divides(self) -> bool:
        """Whether :attr:`summed` is still to be divided by the divisor."""
        return self.reduction in MEANS

    @property
    def compared_with(self) -> Tensor | None:
        """The target; None if there is none."""
        return self.target

    @property
    def indexed(self) -> bool:
        """Whether the target holds class indices."""
        return self.by_class and not self.target.is_floating_point()

    @property
    def problem(self) -> Problem | None:
        """What kind of problem the criterion belongs to; None if that is unknown."""
        return "classes" if self.by_class else None

    def table(self, tensor: Tensor) -> Tensor:
        """The input, or a target of its shape, as (rows, C): one row for each comparison with all its columns."""
        if tensor.dim() == 1:
            return tensor[:, None]
        return tensor.movedim(1, -1).flatten(0, -2) if tensor.dim() > 2 else tensor

    @property
    def logits(self) -> Tensor:
        """(rows, C) logits that the criterion compares."""
        logits = self.table(self.input)
        return logits.logit() if self.probabilities else logits

    @property
    def targets(self) -> Tensor:
        """(rows,) class indices, or (rows, C) numbers."""
        return self.target.flatten() if self.indexed else self.table(self.target)


@dataclass(frozen=True)
class Criterion:
    """What is known of one of torch's criteria."""

    function: Callable[..., Tensor]
    problem: Problem | None
    """None: binary for one column, else several labels."""
    by_class: bool = False
    probabilities: bool = False
    weight_divides: bool = False
    """Whether a mean divides by the sum of the argument ``weight``."""

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The names of the function's parameters, in order."""
        return tuple(inspect.signature(self.function).parameters)


CRITERIA: dict[Any, Criterion] = {
    criterion.function: criterion
    for criterion in (
        Criterion(F.cross_entropy, "classes", by_class=True, weight_divides=True),
        Criterion(F.nll_loss, "classes", by_class=True, weight_divides=True),
        Criterion(F.binary_cross_entropy, None, probabilities=True),
        Criterion(F.binary_cross_entropy_with_logits, None),
        Criterion(F.mse_loss, "regression", weight_divides=True),
        Criterion(F.l1_loss, "regression", weight_divides=True),
        Criterion(F.smooth_l1_loss, "regression"),
        Criterion(F.huber_loss, "regression"),
        Criterion(F.kl_div, "distribution"),
        Criterion(F.gaussian_nll_loss, "regression"),
        Criterion(F.poisson_nll_loss, "regression"),
    )
}
"""The criteria that are caught without a name."""
CAUGHT = ", ".join(function.__name__ for function in CRITERIA)
"""Their names, for messages."""


@dataclass(frozen=True, eq=False)
class TorchCall(Call):
    """A call of one of torch's functional criteria."""

    criterion: Criterion
    input: Tensor
    target: Tensor
    options: dict[str, Any]
    """All other arguments of the call, without the reduction."""
    reduction: str
    counts_all: bool = False
    """Whether it is known that no target is one to ignore."""

    @property
    def name(self) -> str:  # type: ignore[override]  # an attribute that is computed
        """The name of the function."""
        return self.criterion.function.__name__

    @property
    def by_class(self) -> bool:  # type: ignore[override]
        """Whether the classes lie along dimension 1 of the input."""
        return self.criterion.by_class

    @property
    def probabilities(self) -> bool:  # type: ignore[override]
        """Whether the input holds probabilities in place of logits."""
        return self.criterion.probabilities

    def value(self) -> Tensor:
        """What the criterion itself returns to the user's code, in sight of other callbacks that look for calls."""
        return self.criterion.function(self.input, self.target, reduction=self.reduction, **self.options)

    @cached_property
    def elements(self) -> Tensor:
        """The unreduced losses."""
        with torch._C.DisableTorchFunction():
            return self.criterion.function(self.input, self.target, reduction="none", **self.options)

    def on(self, substitute: Callable[[Tensor], Tensor]) -> "TorchCall":
        """The same call with other tensors in place of its own."""
        options = {key: substitute(v) if isinstance(v, Tensor) else v for key, v in self.options.items()}
        return replace(self, input=substitute(self.input), target=substitute(self.target), options=options)

    def with_targets_of(self, rows: Tensor) -> "TorchCall":
        """The same call with the targets, and the weights of single elements, of other rows."""
        options = dict(self.options)
        weight = options.get("weight")
        if not self.by_class and isinstance(weight, Tensor) and weight.shape[:1] == self.target.shape[:1]:
            options["weight"] = weight[rows]
        return replace(self, target=self.target[rows], options=options)

    @property
    def problem(self) -> Problem | None:
        """What kind of problem the criterion belongs to."""
        if self.criterion.problem is not None:
            return self.criterion.problem
        return "binary" if self.input.dim() < 2 or self.input.shape[1] == 1 else "labels"

    @cached_property
    def valid(self) -> Tensor | None:
        """Which elements count; None if the criterion ignores no target."""
        ignored = None if self.counts_all else self.options.get("ignore_index")
        return None if ignored is None or not self.indexed else self.target != ignored

    @cached_property
    def parts(self) -> Tensor | None:
        """What each element adds to the divisor of a mean."""
        weight: Tensor | None = self.options.get("weight")
        if weight is None or not self.criterion.weight_divides or (self.by_class and not self.indexed):
            return self.valid
        if not self.by_class:
            return weight
        return (
            weight[self.target] if self.valid is None else weight[torch.where(self.valid, self.target, 0)] * self.valid
        )

    @property
    def divisor(self) -> Tensor | int:
        """What a mean divides the sum of the elements by."""
        return len(self.input) if self.reduction == "batchmean" else super().divisor


def parse(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TorchCall:
    """Read the arguments of a call of one of torch's criteria."""
    criterion = CRITERIA[function]
    options = {**dict(zip(criterion.parameters, args)), **kwargs}
    legacy = options.pop("size_average", None), options.pop("reduce", None)
    reduction = options.pop("reduction", "mean")
    if legacy != (None, None):
        reduction = legacy_get_string(*legacy, emit_warning=False)
    input, target = options.pop("input"), options.pop("target")
    if criterion.by_class:
        options.setdefault("ignore_index", -100)
    return TorchCall(criterion, input, target, options, reduction)


def _of_first(name: str) -> Any:
    return property(lambda derived: getattr(derived.first, name))


class Derived(Call):
    """A call that is made of others: answers as the first of them, but for what a subclass says itself.

    Args:
        first: the call.
    """

    def __init__(self, first: Call) -> None:
        self.first = first

    name, input, target, reduction = map(_of_first, ("name", "input", "target", "reduction"))
    by_class, class_dim, probabilities = map(_of_first, ("by_class", "class_dim", "probabilities"))
    is_reduced, divides, divisor, parts = map(_of_first, ("is_reduced", "divides", "divisor", "parts"))
    valid, counted, indexed, problem = map(_of_first, ("valid", "counted", "indexed", "problem"))
    logits, targets = map(_of_first, ("logits", "targets"))

    def table(self, tensor: Tensor) -> Tensor:
        """The input, or a target of its shape, as (rows, C)."""
        return self.first.table(tensor)


class Stacked(Derived):
    """Stands for one call on each stack of a head: its losses are the means of theirs."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__(calls[0])
        self.calls = calls

    @property
    def logits(self) -> Tensor:
        """(rows, C) the mean of the logits of the stacks."""
        return _mean([call.logits for call in self.calls])

    def value(self) -> Tensor:
        """The mean of the values."""
        return _mean([call.value() for call in self.calls])

    @cached_property
    def elements(self) -> Tensor:
        """The mean of the unreduced losses."""
        return _mean([call.elements for call in self.calls])

    def weighted(self, weights: Tensor) -> Tensor:
        """The mean of the weighted values."""
        return _mean([call.weighted(weights) for call in self.calls])

    def on(self, substitute: Callable[[Tensor], Tensor]) -> Call:
        """The same calls with other tensors."""
        return Stacked([call.on(substitute) for call in self.calls])

    def with_targets_of(self, rows: Tensor) -> Call:
        """The same calls with the targets of other rows."""
        return Stacked([call.with_targets_of(rows) for call in self.calls])


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)
