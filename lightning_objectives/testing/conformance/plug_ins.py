"""What is put on trial: one exemplar of each callback, and each method under the callback of its kind."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning_objectives import callbacks, kinds
from lightning_objectives._trainer.callback import Callback
from lightning_objectives.discovery import methods
from lightning_objectives.signals import SIGNALS, signals_from, signals_of
from lightning_objectives.testing.conformance.case import Case
from lightning_objectives.testing.signals import build


@dataclass(frozen=True)
class PlugIn:
    """Callbacks that are tried together, made anew for each training.

    Args:
        name: of the row in the table.
        make: the callbacks for a case.
    """

    name: str
    make: Callable[[Case], list[Callback]]

    def idle(self, case: Case) -> list[Callback]:
        """The same callbacks at zero strength."""
        return [switched_off(callback) for callback in self.make(case)]

    def leaves_training_alone(self, case: Case) -> bool:
        """Whether the raw weights are those of a training without it."""
        return all(callback.leaves_training_alone for callback in self.make(case))

    def changes_tests(self, case: Case) -> bool:
        """Whether one of the callbacks says that it changes what a network computes in a test."""
        return any(callback.changes_tests for callback in self.make(case))

    def unsupported(self, case: Case) -> dict[str, list[str]]:
        """The conditions that one of the callbacks, or its methods, refuses, and why each of them does."""
        reasons: dict[str, list[str]] = {}
        for callback in self.make(case):
            for name, why in callback.unsupported().items():
                reasons.setdefault(name, []).append(why)
        return reasons

    def __str__(self) -> str:
        return self.name


def verbs() -> dict[str, type[Any]]:
    """The callbacks that the others are special cases of, by name."""
    found = {name: getattr(callbacks, name) for name in callbacks.__all__}
    return {n: c for n, c in found.items() if not any(c is not o and issubclass(c, o) for o in found.values())}


def ready_made() -> dict[str, type[Any]]:
    """The callbacks that bring their method along, by name."""
    return {name: getattr(callbacks, name) for name in callbacks.__all__ if name not in verbs()}


def place(cls: type[Any], case: Case, method: Any = None, *, provider: type[Any] | None = None) -> list[Callback]:
    """A callback with a method, its exemplary settings, what the case gives by name, and what it needs beside it."""
    given: dict[str, Any] = dict(cls.example)
    needed = [p for p in inspect.signature(cls).parameters.values() if p.default is p.empty and p.name not in given]
    for parameter in needed:
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:  # the method comes first
            given[parameter.name] = method if method is not None else next(methods_of(cls))
        else:
            given[parameter.name] = case.settings[parameter.name]()
    callback = cls(**given)
    for name in {"hidden", "teacher_hidden"} & {*getattr(callback, "signals", ())}:
        option = name.replace("hidden", "layers")
        setattr(callback, option, case.settings[option]())
    if getattr(callback, "needs_layers", False) and callback.layers is None:
        callback.layers = case.settings["changed_layers"]()
    if getattr(callback, "needs_reference", False):
        callback.reference = case.settings["teacher"]()
    asked = {SIGNALS[name].source for name in getattr(callback, "signals", ()) if name in SIGNALS}
    providers = [name for name, verb in verbs().items() if verb.provides in asked and verb is not provider]
    beside = [place(verbs()[name], case, _served(cls, verbs()[name]), provider=cls) for name in cls.beside]
    beside += [[verbs()[name]()] for name in providers]
    return [callback, *(made for group in beside for made in group)]


def _served(provider: type[Any], cls: type[Any]) -> Any:
    """A method of another callback that asks for the signals of a provider; None if the callback provides none."""
    if not provider.provides:
        return None
    given = signals_from(provider.provides)
    return next(method for method in methods_of(cls) if not given.isdisjoint(signals_of(method)))


def methods_of(cls: type[Any]) -> Iterator[Any]:
    """An instance of each method that the callback places: first its exemplar, last those that need something more."""
    rooms = [kind.room for kind in kinds.KINDS if cls.kind and issubclass(kind, cls.kind)]
    found = [method for _, method in (methods(*rooms) if rooms else ()) if method.callback == cls.__name__]
    yield from map(build, sorted(found, key=_needs))


def _needs(method: Any) -> tuple[bool, bool]:
    """Whether a method is no exemplar, and whether it needs files, the index of the samples, layers, or their sizes."""
    asked = inspect.signature(method.forward).parameters if hasattr(method, "forward") else {}
    needs = getattr(method, "asks", ()) or method.remembers or "hidden" in asked
    needs = needs or hasattr(method, "build") or hasattr(method, "draw_layer")
    return not method.exemplar, bool(needs)


def exemplars() -> list[PlugIn]:
    """One of each callback, all of them together, and the ready-made ones together."""
    rows = [PlugIn(name, partial(place, cls)) for name, cls in verbs().items()]
    return [*rows, PlugIn("all together", together), PlugIn("the ready-made together", ready_made_together)]


def together(case: Case) -> list[Callback]:
    """One of each callback."""
    return [place(cls, case)[0] for cls in verbs().values()]


def ready_made_together(case: Case) -> list[Callback]:
    """One ready-made callback for each callback that has some."""
    chosen = {next(n for n, verb in verbs().items() if issubclass(cls, verb)): cls for cls in ready_made().values()}
    return [made for cls in chosen.values() for made in place(cls, case)]


def of_method(method: Any) -> PlugIn:
    """A method under the callback of its kind."""
    cls = verbs()[method.callback]
    return PlugIn(type(method).__name__, lambda case: place(cls, case, build_again(method)))


def every_method() -> list[PlugIn]:
    """Each method that a callback places, found by walking the package."""
    return [of_method(build(cls)) for _, cls in methods() if hasattr(callbacks, getattr(cls, "callback", ""))]


def build_again(method: Any) -> Any:
    """A new one of the same settings."""
    return type(method)(**method.settings())


def switched_off(callback: Callback) -> Callback:
    """The callback at zero strength: by its own setting, or with methods that are never active."""
    for name, value in callback.zero.items():
        setattr(callback, name, value)
    if not callback.zero:
        for method in callback.methods():
            if isinstance(method, kinds.Method):
                object.__setattr__(method, "active", _never)
    return callback


def plain_in_tests(callbacks: list[Callback]) -> list[Callback]:
    """The callbacks, of which those that change what a test computes are at zero strength."""
    return [switched_off(callback) if callback.changes_tests else callback for callback in callbacks]


def _never(*, step: int) -> bool:
    return False
