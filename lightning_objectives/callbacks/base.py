"""What every callback of this package is: a Callback under both names of Lightning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

from lightning_objectives._lightning import Callback as Callback
from lightning_objectives.callbacks.patch import Patch

C = TypeVar("C")
CARRIED = "module:"
"""What the state key of a callback begins with that a module brings."""


def callbacks_of(trainer: Any, kind: type[C]) -> list[C]:
    """The callbacks of a trainer that are of a class, those that a module brought by a mixin included, in order."""
    found = [getattr(callback, "carried", callback) for callback in trainer.callbacks]
    return [callback for callback in found if isinstance(callback, kind)]


def name_unreadable_checkpoints(trainer: Any) -> Patch:
    """Until the patch is removed, a checkpoint that cannot be read is an error that says which file, and why."""
    return Patch(trainer.strategy, "load_checkpoint", _load)


def _load(inner: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return inner(path, *args, **kwargs)
    except (OSError, EOFError, RuntimeError) as error:
        file = Path(path)
        if not file.is_file() or is_zipfile(file):
            raise
        raise ValueError(
            f"The checkpoint {path} is cut off, or no checkpoint: its {file.stat().st_size} bytes do not end with a "
            "table of contents. Nothing was loaded; use an earlier file."
        ) from error


class Carried(Callback):
    """Carries a callback that a module brings, past Lightning's rule that it drops the Trainer's of the same class.

    Every hook goes to the callback that is carried; a second fit replaces the carriers of the first.
    """

    def __init__(self, carried: Callback) -> None:
        self.carried = carried

    @property
    def state_key(self) -> str:
        """Apart from the same callback given to the Trainer."""
        return CARRIED + self.carried.state_key


def _forward(name: str) -> Callable[..., Any]:
    def hook(self: Carried, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.carried, name)(*args, **kwargs)

    return hook


for _name in dir(Callback):
    if _name.startswith("on_") or _name in ("setup", "teardown", "state_dict", "load_state_dict"):
        setattr(Carried, _name, _forward(_name))
