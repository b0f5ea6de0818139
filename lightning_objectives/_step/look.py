"""Looks at one training step, and changes nothing in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.calls import TARGETS, Call
from lightning_objectives._step.head import path_of
from lightning_objectives._step.samples import Samples
from lightning_objectives._step.step import Step
from lightning_objectives.kinds import Problem


@dataclass(frozen=True)
class SeenCriterion:
    """The call of the criterion whose value is the loss."""

    name: str
    input: tuple[int, ...]
    """The shape of what is compared."""
    target: str
    """The shape and the type of what it is compared with."""
    reduction: str
    options: dict[str, Any]
    """The other arguments that say what the loss is, such as ``label_smoothing``; tensors as their shapes."""
    problem: Problem | None
    form: str
    """How the comparisons lie: ``rows``, one for each sample, ``sequence`` or ``dense``."""
    others: tuple[str, ...]
    """The other criteria that the step calls: metrics, and parts of the loss."""
    samples: str
    """Which sample each loss belongs to, or why that is unknown."""

    @property
    def about(self) -> str:
        """What kind of problem it belongs to, in words."""
        forms = {
            "rows": "",
            "sequence": ", at several positions of each sample (a sequence)",
            "dense": ", at each point of a grid (dense)",
        }
        return TARGETS[self.problem].removeprefix("its targets are ") + forms[self.form]


@dataclass(frozen=True)
class SeenHead:
    """The call of the head."""

    path: str
    layer: str
    """Its class."""
    features: tuple[int, ...] | None
    """The shape of its input; None if that is no tensor."""
    logits: tuple[int, ...] | None
    """The shape of its output; None if that is no tensor."""
    network: str
    """The path of the network that holds the head; empty for the module itself."""


@dataclass(eq=False)
class Look(StepCallback):
    """Keeps what the engine finds in the first training step, as the callbacks of the step find it.

    Args:
        wants: the signals that must be there, which decide what the engine looks for: ``"losses"`` for the criterion
            and the samples, ``"features"`` for the head.
    """

    place = "term"

    wants: tuple[str, ...] = ("losses", "features")

    def __post_init__(self) -> None:
        self.seen_criterion: SeenCriterion | None = None
        self.seen_head: SeenHead | None = None

    def methods(self) -> list[Any]:
        """A method that computes nothing."""
        return [_Looking()]

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that must be there."""
        return self.wants

    def term(self, step: Step) -> Tensor | None:
        """Look at the step that is running."""
        if step.user_call is not None and "losses" in self.wants and self.seen_criterion is None:
            self.seen_criterion = _criterion(step.user_call, step)
        if "features" in self.wants and self.seen_head is None:
            self.seen_head = _head(step)
        return None


class _Looking:
    """Stands for a method, also in refusals."""

    def __call__(self) -> None:
        """Compute nothing."""

    def __repr__(self) -> str:
        return "at the step"


def _criterion(call: Call, step: Step) -> SeenCriterion:
    shape = tuple(call.elements.shape)
    found, why = _asked(lambda: step.samples(call, call.elements))
    samples = why if found is None else _samples(found, call)
    # Without a dimension of classes the second one counts the columns of a row, as in a regression on several numbers.
    points = len(shape) - (1 if call.by_class else 2)
    several = found is not None and found.count and len(call.elements) > found.count
    form = "dense" if points > 1 else "sequence" if points == 1 or several else "rows"
    options = {n: v for n, v in getattr(call, "options", {}).items() if v is not None}
    options = {n: f"a tensor {tuple(v.shape)}" if isinstance(v, Tensor) else v for n, v in options.items()}
    target = call.compared_with
    kind = "none" if target is None else f"{tuple(target.shape)} {str(target.dtype).removeprefix('torch.')}"
    others = tuple(f"{other.name} of {tuple(other.input.shape)}" for other in step.calls if other is not call)
    reduction = _asked(lambda: call.reduction)
    return SeenCriterion(
        call.name,
        tuple(call.input.shape),
        kind,
        reduction[0] or "unknown",
        options,
        call.problem,
        form,
        others,
        samples,
    )


def _asked(question: Callable[[], Any]) -> tuple[Any, str]:
    """The answer of the engine, or None and its refusal."""
    try:
        return question(), ""
    except ValueError as error:
        return None, str(error)


def _samples(found: Samples, call: Call) -> str:
    count = f"{found.count} samples"
    if found.ids is None:
        return f"{count}, along dimension 0"
    ids = found.ids
    for dim, size in enumerate(ids.shape):
        numbers = torch.arange(size, device=ids.device).view(-1, *[1] * (ids.dim() - dim - 1))
        if size == found.count and bool((ids == numbers).all()):
            return f"{count}, along dimension {dim + (call.by_class and dim > 0)}"
    each = ids.flatten().bincount(minlength=found.count)
    some = str(int(each[0])) if bool((each == each[0]).all()) else f"{int(each.min())} to {int(each.max())}"
    return f"{count}, each with {some} of the {ids.numel()} losses"


def _head(step: Step) -> SeenHead | None:
    plan = step.plan
    if plan.head is None or step.head_output is None:
        return None
    features: Any = step.values.get("features")
    return SeenHead(
        plan.head_path,
        type(plan.head).__name__,
        tuple(features.shape) if isinstance(features, Tensor) else None,
        tuple(step.head_output.shape),
        path_of(plan.module, plan.network),
    )
