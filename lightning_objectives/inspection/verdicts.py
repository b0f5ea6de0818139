"""Tries each callback on one training step, and keeps its own words if it refuses."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from inspect import signature
from types import SimpleNamespace
from typing import Any

from lightning_objectives._trainer.callback import Callback
from lightning_objectives.inspection.facts import Facts, with_words, words_of
from lightning_objectives.inspection.trial import Outcome, Trials
from lightning_objectives.kinds import Method
from lightning_objectives.signals import SIGNALS
from lightning_objectives.testing.conformance.case import Case
from lightning_objectives.testing.conformance.plug_ins import methods_of, place, verbs

_OTHERS = 4
"""How many methods of a callback are tried, at most."""
_WRITES = {"directory", "cache", "cache_top_k", "path"}
"""Settings that say where a callback writes files; those of a trial go where the trial's do, or are not written."""


@dataclass(frozen=True)
class Verdict:
    """Whether a callback applies to a module."""

    callback: str
    """The callback and its methods."""
    yours: bool
    """Whether it is one of the training; if not, it is tried with one of its methods."""
    applies: bool
    refusal: str = ""
    """Why it does not apply, or does not as it is, in the callback's own words."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings with which it applies if it refuses without them."""
    warnings: tuple[str, ...] = ()
    """What it warns of."""

    @property
    def asked(self) -> tuple[str, ...]:
        """The settings that the refusal names."""
        return tuple(dict.fromkeys(re.findall(r"\b([a-z_]+)=", self.refusal)))


@dataclass
class Judge:
    """Tries callbacks on one module.

    Args:
        trials: of the module.
        plain: a step of the module without callbacks.
        facts: what is known of the module.
        strategy: that of the training; None for one device.
    """

    trials: Trials
    plain: Outcome
    facts: Facts
    strategy: Any = None

    def judge(self, callbacks: Sequence[Any], *, yours: bool, name: str = "") -> Verdict:
        """Try a callback, the first one, with those that it needs beside it; then with the settings that may help."""
        name = name or " beside ".join(map(name_of, callbacks))
        skipped = self._skipped(callbacks[0]) if len(callbacks) == 1 else ""
        if skipped:
            return Verdict(name, yours, False, skipped)
        error, warnings = self._tried(callbacks, {})
        if error is None:
            return Verdict(name, yours, True, warnings=warnings)
        refusal, settings = words_of(error), self._helping(callbacks)
        if settings:
            failed, warnings = self._tried(callbacks, settings)
            if failed is None:
                return Verdict(name, yours, True, refusal, settings, warnings)
            refusal += f" {with_words(settings)}: {words_of(failed)}"
        return Verdict(name, yours, False, refusal)

    def others(self, yours: Sequence[Any]) -> Iterator[Verdict]:
        """Try each callback of this package that is not among those of the training, with a method that fits.

        If that method refuses what the step gives it, a few others have their turn.
        """
        for verb in verbs().values():
            if any(isinstance(callback, verb) for callback in yours):
                continue
            fitting = self._fitting(verb)[: 1 if isinstance(self.facts.criterion, str) else _OTHERS]
            verdicts = (self.judge(self._placed(verb, method), yours=False) for method in fitting)
            first = next(verdicts)
            other = None if first.applies else next((verdict for verdict in verdicts if verdict.applies), None)
            yield first if other is None else replace(other, refusal=f"Not with {first.callback}: {first.refusal}")

    def _placed(self, verb: type[Any], method: Any) -> list[Any]:
        """A callback with a method, and what it needs beside it."""
        callback, *needed = place(verb, self._case, method)
        if verb.provides is None:
            needed = [o if o.provides else place(type(o), self._case, self._fitting(type(o))[0])[0] for o in needed]
        return [callback, *needed]

    def _tried(self, callbacks: Sequence[Any], settings: dict[str, Any]) -> tuple[Exception | None, tuple[str, ...]]:
        try:
            outcome = attempt(self.trials, callbacks, settings, self.strategy)
        except ValueError as error:  # The strategy is refused.
            return error, ()
        return outcome.error, tuple(text for text in outcome.warnings if text not in self.plain.warnings)

    def _helping(self, callbacks: Sequence[Any]) -> dict[str, Any]:
        """The settings from the facts that a callback has and was not given."""
        return {n: value for n, value in self.facts.settings.items() if getattr(callbacks[0], n, "") is None}

    def _skipped(self, callback: Any) -> str:
        """Why a trial would show nothing."""
        if callback.changes_tests:
            return "" if self.trials.defines("test_step") else "it acts in test_step, which the module does not define"
        measures = type(callback).on_validation_epoch_end is not Callback.on_validation_epoch_end
        return "it acts in a validation, and there is none" if measures and not self._validates else ""

    @cached_property
    def _validates(self) -> bool:
        return self.plain.trainer.val_dataloaders is not None and self.trials.defines("validation_step")

    def _fitting(self, verb: type[Any]) -> list[Any]:
        """The methods of a callback for the problem of the module, or all; one None if the callback places none."""
        known = list(methods_of(verb)) if verb.kind else []
        problem = None if isinstance(self.facts.criterion, str) else self.facts.criterion.problem
        alike = {problem, "classes"} if problem in ("binary", "distribution") else {problem}
        fitting = [m for m in known if not getattr(m, "problems", ()) or alike & set(m.problems)]
        return fitting or known or [None]

    @cached_property
    def _case(self) -> Case:
        """What callbacks are given that need something: the network as its own teacher, and its head as a layer."""
        head = self.facts.head
        network = self.plain.module if isinstance(head, str) else self.plain.module.get_submodule(head.network)
        weighted = [path for path, part in self.plain.module.named_modules() if part._parameters]
        layer = weighted[-1] if isinstance(head, str) else head.path
        inner = layer.removeprefix(f"{head.network}.") if not isinstance(head, str) and head.network else layer
        settings: dict[str, Any] = {"teacher": partial(copy.deepcopy, network), "layers": lambda: layer}
        return Case(settings={**settings, "teacher_layers": lambda: inner, "changed_layers": lambda: layer})


def attempt(
    trials: Trials, callbacks: Sequence[Any], settings: Mapping[str, Any], strategy: Any, *, trains: bool = True
) -> Outcome:
    """Run one step with copies of callbacks.

    Args:
        trials: of the module.
        callbacks: they stay as they are, and write no file.
        settings: replace those that are None.
        strategy: that of the training; the trial itself runs on one device.
        trains: whether to go beyond the setup.
    """
    copies = [copy.deepcopy(callback) for callback in callbacks]
    for callback in copies:
        for name in _WRITES & vars(callback).keys():
            setattr(callback, name, None)
        for name, value in settings.items():
            if getattr(callback, name, "") is None:
                setattr(callback, name, value)
    if strategy is not None:
        for callback in copies:
            Callback.setup(callback, SimpleNamespace(strategy=strategy), None, "fit")
    in_test = bool(copies) and all(callback.changes_tests for callback in copies)
    return trials.run(copies, "test" if in_test and trains else "fit", trains=trains)


def beside(callback: Any, others: Sequence[Any]) -> list[Any]:
    """Those of the other callbacks that a callback cannot act without."""
    asked = {SIGNALS[name].source for name in getattr(callback, "signals", ()) if name in SIGNALS} - {None}
    needed = [other for other in others if other is not callback]
    return [o for o in needed if o.provides in asked or {cls.__name__ for cls in type(o).__mro__} & {*callback.beside}]


def name_of(callback: Any) -> str:
    """A callback with its methods, without the settings that both have by default.

    >>> from lightning_objectives.averaging import EMA
    >>> from lightning_objectives.callbacks import AverageWeights
    >>> name_of(AverageWeights(EMA(decay=0.9), start_step=3))
    'AverageWeights(EMA(decay=0.9))'
    """
    return f"{type(callback).__name__}({', '.join(map(_method, callback.methods()))})"


def _method(method: Any) -> str:
    if not isinstance(method, Method):
        return str(getattr(method, "__name__", type(method).__name__))
    defaults = {name: parameter.default for name, parameter in signature(type(method)).parameters.items()}
    changed = [
        f"{name}={value!r}" for name, value in method.settings().items() if repr(value) != repr(defaults.get(name))
    ]
    return f"{type(method).__name__}({', '.join(changed)})" if changed else type(method).__name__
