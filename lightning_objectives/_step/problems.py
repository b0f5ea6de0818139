"""Says whether a method is for the problem of a criterion, and gives the signals the form that the method takes."""

from collections.abc import Callable
from typing import Any

import torch

from lightning_objectives._step.calls import TARGETS, Call
from lightning_objectives.kinds import signals_of
from lightning_objectives.signals import signals_from

_COLUMNS = ("logits", "reference_logits", "target", "teacher_logits")
_OF_CRITERION = signals_from("criterion")
_REPLACED_BY = {"binary": "classes", "distribution": "classes"}
"""Problems that methods for another problem can work on."""


def check_problem(owner: str, method: Callable[..., Any], call: Call) -> None:
    """Refuse a criterion of another problem than a method is for.

    Args:
        owner: the name of what places the method, for the message.
        method: the method; its ``problems`` are those that it is for, empty for all.
        call: the criterion's call.

    Raises:
        ValueError: with the problem, and the way out.
    """
    problem, problems = call.problem, getattr(method, "problems", ())
    if not problems or _OF_CRITERION.isdisjoint(signals_of(method)):
        return
    if problem is not None and {problem, _REPLACED_BY.get(problem)} & set(problems):
        return
    meant = " or ".join(TARGETS[name].removeprefix("its targets are ") for name in problems)
    raise ValueError(
        f"{owner}: {method} is for {meant}. The model's criterion, {call.name} of {tuple(call.input.shape)}, is "
        f"another: {TARGETS[problem]}, where the method's values mean nothing. Use another method, or, if you mean it, "
        f"pass a function in place of the method: lambda {', '.join(signals_of(method))}: ..."
    )


def adapted(method: Callable[..., Any], name: str, value: Any, call: Call) -> Any:
    """A signal in the form that a method takes: one logit z becomes two columns (0, z) for a method for classes.

    With one logit t is the probability of the second class, so the target becomes (1 - t, t).
    """
    problems = getattr(method, "problems", ())
    is_adapted = name in _COLUMNS and problems and "binary" not in problems
    if call.problem != "binary" or not is_adapted:
        return value
    return torch.cat([1 - value if name == "target" else torch.zeros_like(value), value], 1)
