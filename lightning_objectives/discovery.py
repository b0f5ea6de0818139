"""Finds every method by walking the package, so that no list of them is kept anywhere."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

import lightning_objectives
from lightning_objectives.kinds import KINDS

ROOMS: dict[str, type[Any]] = {**{kind.room: kind for kind in KINDS}, "schedules": LRScheduler, "metrics": Metric}
"""The rooms that hold methods, and the base class of the methods of each."""


def methods() -> Iterator[tuple[str, type[Any]]]:
    """Every method as ``(room, class)``, in the order of rooms and file names; private modules are passed over.

    >>> ("averaging", "EMA") in [(room, cls.__name__) for room, cls in methods()]
    True
    """
    for room, base in ROOMS.items():
        package = importlib.import_module(f"{lightning_objectives.__name__}.{room}")
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
            if module.name.startswith("_"):
                continue
            found = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
            for value in found.values():
                if isinstance(value, type) and issubclass(value, base) and value.__module__ == found["__name__"]:
                    yield room, value
