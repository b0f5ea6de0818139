"""What every callback of this package is: a Callback under both names of Lightning."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
else:
    # A project on `pytorch_lightning` has a Trainer that knows another class of the same name: be both.
    names = [name for name in ("lightning.pytorch", "pytorch_lightning") if find_spec(name)]
    Callback = type("Callback", tuple(import_module(name).Callback for name in names), {"__module__": __name__})

C = TypeVar("C")


def callbacks_of(trainer: Any, kind: type[C]) -> list[C]:
    """The callbacks of a trainer that are of a class, those that a module brought by a mixin included, in order."""
    found = [getattr(callback, "carried", callback) for callback in trainer.callbacks]
    return [callback for callback in found if isinstance(callback, kind)]
