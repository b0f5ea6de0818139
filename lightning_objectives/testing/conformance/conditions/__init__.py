"""The conditions, one file for each family: every public function of these files is one, its first line its meaning."""

import inspect
import pkgutil
from importlib import import_module

from lightning_objectives.testing.conformance.check import Condition


def conditions() -> list[Condition]:
    """All conditions, by family and in the order of their files.

    >>> next(condition.name for condition in conditions() if condition.family == "precision")
    'float32'
    """
    found = []
    for file in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{file.name}")
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                found.append(Condition(file.name, value))
    return found
