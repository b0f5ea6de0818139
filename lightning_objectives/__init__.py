"""Add published training methods to the Lightning model you already have.

Every public callback, method, function, mixin, metric and data module is here under its own name:

>>> import lightning_objectives as lo
>>> lo.AverageWeights(lo.EMA(decay=0.99)).names
('ema',)

A name is imported when it is first used, so that ``import lightning_objectives`` loads neither torch nor Lightning.
What you need to write or check a method of your own stays in its module, as in ``lo.kinds.Loss``.
"""
# ruff: noqa: F403, F405

import ast
import pkgutil
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # for type checkers and editors; the functions below do the same for the running program
    from lightning_objectives import kinds as kinds
    from lightning_objectives import testing as testing
    from lightning_objectives.adaptation import *
    from lightning_objectives.averaging import *
    from lightning_objectives.batches import *
    from lightning_objectives.calibration import *
    from lightning_objectives.callbacks import *
    from lightning_objectives.combination import *
    from lightning_objectives.data import *
    from lightning_objectives.distillation import *
    from lightning_objectives.gradients import *
    from lightning_objectives.heads import *
    from lightning_objectives.inspection import *
    from lightning_objectives.loops import *
    from lightning_objectives.losses import *
    from lightning_objectives.merging import *
    from lightning_objectives.metrics import *
    from lightning_objectives.mixins import *
    from lightning_objectives.perturbations import *
    from lightning_objectives.prediction_sets import *
    from lightning_objectives.regularizers import *
    from lightning_objectives.schedules import *
    from lightning_objectives.surgery import *
    from lightning_objectives.surveys import *
    from lightning_objectives.weighting import *
else:

    def __getattr__(name: str) -> Any:
        """Import a public name, or a public module of the package."""
        if name in _parts():
            return import_module(f"{__name__}.{name}")
        if name in _homes():
            value = getattr(import_module(_homes()[name]), name)
            return globals().setdefault(name, value)  # the next time Python finds it without this function
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])

    def __dir__() -> list[str]:
        return sorted({*globals(), *_parts(), *_homes()})


@cache
def _parts() -> list[str]:
    """The public modules and folders of the package."""
    return [part.name for part in pkgutil.iter_modules(__path__) if not part.name.startswith("_")]


@cache
def _homes() -> dict[str, str]:
    """The module that exports each public name, read from the sources, because importing them all takes seconds."""
    homes: dict[str, str] = {}
    for part in _parts():
        path = Path(__path__[0], part)
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.parse(source.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" and part != "testing":
                homes |= dict.fromkeys(ast.literal_eval(node.value), f"{__name__}.{part}")
    return homes
