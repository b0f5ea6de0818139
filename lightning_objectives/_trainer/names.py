"""Tells things of one name apart by numbers."""

import re
from collections.abc import Container, Iterable
from typing import TypeVar

T = TypeVar("T")


def numbered(name: str, used: Container[str]) -> str:
    """Return the name, or the next numbered one if the name is in use.

    >>> numbered("ema", ["raw"]), numbered("top1", ["top1"]), numbered("ema_2", ["ema", "ema_2"])
    ('ema', 'top1_2', 'ema_3')
    """
    base, number, candidate = re.sub(r"_\d+$", "", name), 2, name
    while candidate in used:
        candidate, number = f"{base}_{number}", number + 1
    return candidate


def by_class(methods: Iterable[T]) -> dict[str, T]:
    """Methods by the names of their classes in lower case, numbered where they repeat.

    >>> by_class([1, 2, "x"])
    {'int': 1, 'int_2': 2, 'str': 'x'}
    """
    named: dict[str, T] = {}
    for method in methods:
        named[numbered(type(method).__name__.lower(), named)] = method
    return named
