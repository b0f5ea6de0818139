"""Puts the site's sources together: the hand-written pages, and one page for each method and part of the package.

Run as ``python docs/gen.py OUT``. What the pages say is in the docstrings. It fails where a public name has no page or
no docstring.
"""

import importlib
import inspect
import pkgutil
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import lightning_objectives
from lightning_objectives.discovery import ROOMS, methods

ROOT = lightning_objectives.__name__


def pages() -> dict[str, list[str]]:
    """The generated pages, each with the full names of what it documents."""
    made: dict[str, list[str]] = {"kinds.md": [f"{ROOT}.kinds"]}
    for room, cls in methods():
        made[f"methods/{room}/{cls.__module__.rpartition('.')[2]}.md"] = [cls.__module__]
    for module in modules():
        part = module.__name__.partition(".")[2]
        if part and part != "kinds" and part.partition(".")[0] not in ROOMS:
            names = [f"{module.__name__}.{name}" for name in getattr(module, "__all__", ())]
            if names or not hasattr(module, "__path__"):
                made[f"package/{part}.md"] = names or [module.__name__]
    return made


def modules() -> Iterator[ModuleType]:
    """Every public module of the package."""
    yield lightning_objectives
    for found in pkgutil.walk_packages(lightning_objectives.__path__, f"{ROOT}."):
        if "._" not in found.name and not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)
