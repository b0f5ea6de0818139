"""Remembers trainings, so that what two conditions or two plug-ins have in common is trained once."""

import copy
import functools
import sys
import types
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Memory:
    """Calls functions, and remembers what they return for as long as it lives.

    A call is remembered only if its function and its arguments can be compared with those of other calls, down to
    the variables that their closures captured. A call that changes one of them is not remembered: it may do more than
    return something.

    >>> memory = Memory()
    >>> memory.once(pow, 2, 3), memory.once(pow, 2, 3), memory.once(pow, 3, 2), len(memory)
    (8, 8, 9, 2)
    """

    def __init__(self) -> None:
        self._results: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._results)

    def once(self, function: Callable[..., Result], *arguments: Any, key: tuple[Any, ...] | None = None) -> Result:
        """Call the function, or return a copy of what it returned before for the same arguments.

        Args:
            function: what to call. Everything that it returns is copied.
            arguments: of the function.
            key: what the result depends on, if this is not the function and the arguments themselves.
        """
        depends = (function, *arguments) if key is None else key
        try:
            before = (_surroundings(), identity(depends))
        except Unknown:
            return function(*arguments)
        if before not in self._results:
            fresh = function(*arguments)
            if (_surroundings(), identity(depends)) != before:
                return fresh
            self._results[before] = copy.deepcopy(fresh)
        result: Result = copy.deepcopy(self._results[before])
        return result


class Unknown(Exception):  # noqa: N818  # it is no error of a caller
    """Raised for a value that cannot be compared with another."""


def identity(value: Any) -> Hashable:
    """A key that is equal for two values only if they do the same in a training.

    Functions and classes that were defined inside of another function are compared by their code, and by what they
    captured; those of a module by being the same object.

    Raises:
        Unknown: the value, or a part of it, is of a type that this function does not know.

    >>> def power(n):
    ...     return lambda x: x**n
    >>> identity(power(2)) == identity(power(2)), identity(power(2)) == identity(power(3))
    (True, False)
    """
    return _Identity().of(value)


class _Same:
    """Is equal to what holds the same object, which stays alive with it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(...))
_OF_EVERY_CLASS = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__abstractmethods__"}
_OF_EVERY_CLASS |= {"_abc_impl", "__parameters__", "__firstlineno__", "__static_attributes__"}


class _Identity:
    def __init__(self) -> None:
        self.open: list[Any] = []
        """The values whose identity is being made: each may hold itself."""

    def of(self, value: Any) -> Hashable:
        if isinstance(value, _CONSTANTS) and type(value) in _CONSTANTS:
            return type(value), repr(value)
        if any(value is one for one in self.open):
            return "within itself", next(i for i, one in enumerate(self.open) if one is value)
        if _is_importable(value):
            return _Same(value)
        self.open.append(value)
        try:
            return self._of_parts(value)
        finally:
            self.open.pop()

    def _of_parts(self, value: Any) -> Hashable:
        kind = type(value)
        if kind in (tuple, list):
            return kind, tuple(map(self.of, value))
        if kind in (dict, types.MappingProxyType):
            return kind, tuple((self.of(key), self.of(inner)) for key, inner in value.items())
        if kind is torch.Tensor and value.device.type == "cpu" and not value.requires_grad:
            numbers = value.resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return kind, value.dtype, value.shape, numbers
        if kind is functools.partial:
            return kind, self.of((value.func, value.args, value.keywords))
        if kind in (staticmethod, classmethod):
            return kind, self.of(value.__func__)
        if kind is property:
            return kind, self.of((value.fget, value.fset, value.fdel))
        if kind is types.FunctionType:
            return self._of_function(value)
        if isinstance(value, type):
            own = {name: inner for name, inner in vars(value).items() if name not in _OF_EVERY_CLASS}
            return kind, self.of((value.__name__, value.__bases__, own))
        raise Unknown(repr(kind))

    def _of_function(self, function: types.FunctionType) -> Hashable:
        try:
            captured = [cell.cell_contents for cell in function.__closure__ or ()]
        except ValueError as empty:
            raise Unknown("a variable without a value") from empty
        same = _Same(function.__code__), _Same(function.__globals__)
        return same, self.of([captured, function.__defaults__, function.__kwdefaults__, vars(function)])


def _is_importable(value: Any) -> bool:
    """Whether a function or a class stands under its own name in its module."""
    if not isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return False
    found: Any = sys.modules.get(value.__module__ or "")
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


def _surroundings() -> Hashable:
    """What every training depends on beside its settings."""
    switches = torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(), torch.is_anomaly_enabled()
    return torch.get_default_dtype(), torch.get_num_threads(), switches
