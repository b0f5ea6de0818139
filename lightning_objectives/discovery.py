"""Finds every method by walking the package, so that nobody has to keep a list of them."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from torch.nn import Module
from torch.optim.lr_scheduler import LRScheduler

from lightning_objectives.kinds import KINDS

# A torchmetrics.Metric is a Module. To name it here would load torchmetrics, which takes longer than torch itself.
ROOMS: dict[str, type[Any]] = {**{kind.room: kind for kind in KINDS}, "schedules": LRScheduler, "metrics": Module}
"""The rooms that hold methods, and the base class of the methods of each."""


def methods(*rooms: str) -> Iterator[tuple[str, type[Any]]]:
    """Give every method as ``(room, class)``, in the order of the rooms and of the names of their files.

    Args:
        rooms: the rooms to look into; all of them by default. The others are not imported.

    >>> ("averaging", "EMA") in [(room, cls.__name__) for room, cls in methods()]
    True
    >>> {room for room, cls in methods("merging")}
    {'merging'}
    """
    for room in rooms or ROOMS:
        package = importlib.import_module(f"{__package__}.{room}")
        for file in sorted(pkgutil.iter_modules(package.__path__), key=lambda file: file.name):
            if file.name.startswith("_"):
                continue
            module = importlib.import_module(f"{package.__name__}.{file.name}")
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, ROOMS[room]) and value.__module__ == module.__name__:
                    yield room, value
