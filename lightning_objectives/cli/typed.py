"""Reads what stands on a command line as the type that a setting has."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def typed(text: str, annotation: Any) -> Any:
    """Read a word as None, a bool, a number, a list or a text, whichever the annotation allows.

    Args:
        text: the word. None, true and false may be written with capitals; a list as ``[1, 2]`` or ``1,2``.
        annotation: the type of the setting. A function cannot be written on a command line.

    Raises:
        ValueError: the word is none of these.

    >>> typed("None", float | None), typed("true", bool), typed("[0.5, 2]", Sequence[float] | None)
    (None, True, [0.5, 2.0])
    """
    kinds = _alternatives(annotation)
    word = text.strip().lower()
    if NoneType in kinds and word in ("none", "null"):
        return None
    if bool in kinds and word in ("true", "false"):
        return word == "true"
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                pass
    for kind in kinds:
        if get_origin(kind) in (list, tuple, Sequence):
            items = [item for item in text.strip().strip("[]()").split(",") if item.strip()]
            return [typed(item.strip(), get_args(kind)[0]) for item in items]
    for kind in kinds:
        if kind is str or get_origin(kind) is Literal:
            return text  # The method itself knows which words it takes.
    raise ValueError(f"invalid {type_name(annotation)} value: {text!r}")


def type_name(annotation: Any) -> str:
    """Name a type in a message.

    >>> type_name(Sequence[float] | None)
    'list of float or None'
    """
    names = []
    for kind in _alternatives(annotation):
        if get_origin(kind) in (list, tuple, Sequence):
            names.append(f"list of {type_name(get_args(kind)[0])}")
        elif get_origin(kind) is Literal:
            names += map(str, get_args(kind))
        elif kind is NoneType:
            names.append("None")
        elif isinstance(kind, type):
            names.append(kind.__name__)
    return " or ".join(names)


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def imported(path: str) -> Callable[..., Any]:
    """Import a function by its path, from the current folder too.

    Raises:
        ValueError: there is no such function.
    """
    module, _, name = path.rpartition(".")
    here = str(Path.cwd())
    if here not in sys.path:  # The command's own script leaves it out, where ``python -m`` has it.
        sys.path.insert(0, here)
    try:
        function: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} cannot be imported: give package.module.function. ({error})") from error
    if not callable(function):
        raise ValueError(f"{path!r} is a {type(function).__name__}, not a function.")
    return function  # type: ignore[no-any-return]  # it was just tried
