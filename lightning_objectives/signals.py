"""The signals: everything that a method may ask for, by naming it as a parameter of ``forward``."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from torch import nn

Source = Literal["batch", "callback", "criterion", "head", "network", "reference", "teacher", "trainer"]
"""What a signal comes from: the step taps only what the methods of a training need."""


@dataclass(frozen=True)
class Signal:
    """One value that a callback can pass to a method."""

    name: str
    shape: str
    """``(N, C)``, say; empty if it is no tensor."""
    by_row: bool
    """Whether its first dimension counts the samples."""
    source: Source
    doc: str


def _table(*signals: Signal) -> dict[str, Signal]:
    table = {signal.name: signal for signal in signals}
    assert len(table) == len(signals), "a signal stands in the table twice"
    return table


SIGNALS: dict[str, Signal] = _table(
    Signal(
        "again",
        "",
        False,
        "network",
        "calls the network once more as the step has called it: `again(inputs, seed=0)` -> (N, C) logits; equal seeds "
        "draw the same dropout masks",
    ),
    Signal("epoch", "() int", False, "trainer", "the number of completed epochs"),
    Signal("features", "(N, D)", True, "head", "the input of the network's head"),
    Signal("generator", "", False, "callback", "a `torch.Generator` that leaves the user's random stream untouched"),
    Signal("gradients", "(K, P)", False, "callback", "the flattened gradient of each of the K terms of the objective"),
    Signal(
        "group",
        "(N,) int",
        True,
        "batch",
        "the group of each sample, from the batch's key `group` or `objective_group`",
    ),
    Signal("head", "", False, "head", "the network's head, a callable (rows, D) -> (rows, C)"),
    Signal(
        "hidden",
        "",
        False,
        "callback",
        "the outputs of the layers that the user names by `layers=`: a tuple of (N, channels, ...)",
    ),
    Signal("index", "(N,) int", True, "batch", "the position of each sample in the data set, from `with_index`"),
    Signal("inputs", "(N, ...)", True, "batch", "the input of the network"),
    Signal("logits", "(N, C)", True, "criterion", "the input of the criterion"),
    Signal("losses", "(N,)", True, "criterion", "the unreduced losses; a weighting gets them without gradient"),
    Signal(
        "mask",
        "(N, ...) bool",
        True,
        "criterion",
        "the positions of each sample that count, for a loss whose unit is the sample",
    ),
    Signal(
        "memory", "", False, "callback", "what the method remembers of the samples: tensors (N, ...) by name, float32"
    ),
    Signal(
        "memory_bank",
        "",
        False,
        "callback",
        "what the method remembers of all samples of the data set: tensors (samples, ...) by name, float32, which it "
        "must not write to",
    ),
    Signal("network", "", False, "head", "the module that holds the head"),
    Signal("progress", "() float", False, "trainer", "the part of the training that is done, in [0, 1]"),
    Signal("reference_logits", "(N, C)", True, "reference", "the logits of the reference of `Refer`, without gradient"),
    Signal(
        "reference_losses",
        "(N,)",
        True,
        "reference",
        "the model's own criterion on the logits of the reference, without gradient",
    ),
    Signal(
        "reference_weights",
        "",
        False,
        "reference",
        "the parameters of the reference, by their names in the network: a dict of tensors",
    ),
    Signal("step", "() int", False, "trainer", "the number of completed optimizer steps"),
    Signal("target", "(N,) int or (N, C) float", True, "criterion", "what the criterion compares the logits with"),
    Signal("teacher_features", "(N, D')", True, "teacher", "the input of the teacher's head, without gradient"),
    Signal(
        "teacher_hidden",
        "",
        False,
        "teacher",
        "the outputs of the teacher's layers, by `teacher_layers=`: a tuple of (N, channels, ...), without gradient",
    ),
    Signal("teacher_logits", "(N, C)", True, "teacher", "the teacher's output for the same inputs, without gradient"),
    Signal("terms", "(K,)", False, "callback", "the values of the K terms of the objective, without gradient"),
)
"""Every signal, by its name."""

BY_ROW = frozenset(name for name, signal in SIGNALS.items() if signal.by_row)
"""The names of the signals whose first dimension counts the samples."""


def signals_from(*sources: Source) -> frozenset[str]:
    """The names of the signals that come from any of these sources.

    >>> sorted(signals_from("criterion"))
    ['logits', 'losses', 'mask', 'target']
    """
    return frozenset(name for name, signal in SIGNALS.items() if signal.source in sources)


def signals_of(method: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the signals that a method (a module or a function) takes, in the order of its parameters.

    Raises:
        TypeError: a parameter without a default is no signal, or the parameters have no names (``*args``).

    >>> signals_of(lambda logits, target, temperature=1.0: None)
    ('logits', 'target')
    """
    forward = method.forward if isinstance(method, nn.Module) else method
    name = type(method).__name__ if isinstance(method, nn.Module) else getattr(method, "__name__", repr(method))
    return signals_among(inspect.signature(forward).parameters.values(), owner=f"{name}.forward")


def signals_among(parameters: Iterable[inspect.Parameter], *, owner: str) -> tuple[str, ...]:
    """The names of the signals among the parameters of the function that is called ``owner`` in messages.

    Raises:
        TypeError: a parameter without a default is no signal, or the parameters have no names (``*args``).
    """
    names = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"{owner} takes {parameter}, which does not say what it needs. Name each signal as a parameter "
                "of its own."
            )
        if parameter.name in SIGNALS:
            names.append(parameter.name)
        elif parameter.default is parameter.empty:
            close = get_close_matches(parameter.name, SIGNALS, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            known = ", ".join(sorted(SIGNALS))
            raise TypeError(f"{owner} asks for {parameter.name!r}, which is no signal. {hint}Signals: {known}.")
    return tuple(names)
