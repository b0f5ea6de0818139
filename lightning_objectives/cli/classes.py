"""The classes that a configuration may name without a path: those of this package, and Lightning's callbacks."""

from importlib import import_module

import lightning_objectives
from lightning_objectives._trainer.lightning import part
from lightning_objectives.discovery import methods


def import_all() -> None:
    """Import every class that may be named: jsonargparse finds a class by its name alone once it is imported."""
    for name in ("callbacks", "data"):
        import_module(f"{lightning_objectives.__name__}.{name}")
    list(methods())


def names() -> list[str]:
    """The names of these classes."""
    ours = [name for name in dir(lightning_objectives) if name[0].isupper()]
    return [*ours, *part("callbacks").__all__]
