"""What every callback of this package is: a Callback under both names of Lightning."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from zipfile import is_zipfile

from lightning_objectives.callbacks.patch import Patch
from lightning_objectives.kinds import Method

if TYPE_CHECKING:
    from lightning.pytorch import Callback as _Both
else:
    # A project on `pytorch_lightning` has a Trainer that knows another class of the same name: be both.
    names = [name for name in ("lightning.pytorch", "pytorch_lightning") if find_spec(name)]
    _Both = type("_Both", tuple(import_module(name).Callback for name in names), {"__module__": __name__})


STRATEGIES = {"FSDPStrategy": "fsdp", "DeepSpeedStrategy": "deepspeed", "ModelParallelStrategy": "fsdp2"}
"""The conditions that strategies make, by the names of their classes, which both Lightnings share."""
_FLAT = "it hides the parameters in flat shards; use ModelParallelStrategy (FSDP2) or DDPStrategy"


class Callback(_Both):
    """What the callbacks of this package say of themselves, to be held to it by ``testing.conformance``."""

    example: ClassVar[Mapping[str, Any]] = {}
    """Settings with which a training of a few steps shows it at work, where the defaults do not."""
    zero: ClassVar[Mapping[str, Any]] = {}
    """Settings, kept under their names, at which it changes nothing; without any, methods that are not active."""
    beside: ClassVar[tuple[str, ...]] = ()
    """The names of the callbacks without which it has nothing to do."""
    leaves_training_alone: ClassVar[bool] = False
    """Whether the weights go the same way in training as without it."""
    draws: ClassVar[bool] = False
    """Whether its methods may draw from the global random stream, so that the user's own draws are other ones."""
    refuses: ClassVar[Mapping[str, str]] = {"fsdp": _FLAT, "deepspeed": _FLAT}
    """The conditions that it refuses at setup beside those of its bases, and why; the error says so."""

    def unsupported(self) -> dict[str, str]:
        """The conditions that it, or a method of its, refuses with these settings, and why."""
        told = [vars(cls).get("refuses", {}) for cls in reversed(type(self).__mro__)]
        told += [method.unsupported for method in self.placed()]
        return {name: why for refused in told for name, why in refused.items()}

    def placed(self) -> list[Method]:
        """The methods that it was given."""
        given = [m for value in vars(self).values() for m in (value if isinstance(value, list) else [value])]
        return [method for method in given if isinstance(method, Method)]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse to train under a strategy that is not supported.

        Raises:
            ValueError: the strategy, and why.
        """
        if stage != "fit":
            return
        for strategy in type(trainer.strategy).__mro__:
            why = self.unsupported().get(STRATEGIES.get(strategy.__name__, ""))
            if why is not None:
                raise ValueError(f"{type(self).__name__} cannot work under {strategy.__name__}: {why}.")


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
