"""What every callback of this package is: a Callback under both names of Lightning."""

import re
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from zipfile import is_zipfile

from torch import Tensor

from lightning_objectives._files.intact import check_sums, hint
from lightning_objectives._trainer.lightning import Callback as _Both
from lightning_objectives._trainer.patch import Patch
from lightning_objectives.kinds import Method

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
        """Refuse to train under a strategy that is not supported; name checkpoints that cannot be read.

        Raises:
            ValueError: the strategy, and why.
        """
        for strategy in type(trainer.strategy).__mro__ if stage == "fit" else ():
            why = self.unsupported().get(STRATEGIES.get(strategy.__name__, ""))
            if why is not None:
                raise ValueError(f"{type(self).__name__} cannot work under {strategy.__name__}: {why}.")
        _unreadable_are_named(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the strategy as it was."""
        _unreadable_are_named(trainer).remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the strategy as it was: `teardown` is not called when a fit raises."""
        _unreadable_are_named(trainer).remove()


C = TypeVar("C")
CARRIED = "module:"
"""What the state key of a callback begins with that a module brings."""


def callbacks_of(trainer: Any, kind: type[C]) -> list[C]:
    """The callbacks of a trainer that are of a class, those that a module brought by a mixin included, in order."""
    found = [getattr(callback, "carried", callback) for callback in trainer.callbacks]
    return [callback for callback in found if isinstance(callback, kind)]


def _unreadable_are_named(trainer: Any) -> Patch:
    """Until the patch is removed, a checkpoint that cannot be read is an error that says which file, and why.

    Its checksums are compared first, which Lightning and torch do not. The callbacks of a trainer share one patch.
    """
    patch = vars(trainer.strategy).get("load_checkpoint")
    while isinstance(patch, Patch) and patch.around is not _load:
        patch = patch.inner
    return patch if isinstance(patch, Patch) else Patch(trainer.strategy, "load_checkpoint", _load)


def _load(inner: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
    file = Path(path)
    if not file.is_file():
        return inner(path, *args, **kwargs)  # missing, or no single file of this machine
    try:
        check_sums(file)
        found = inner(path, *args, **kwargs)
    except Exception as error:  # torch raises what comes: RuntimeError, UnpicklingError, EOFError, ...
        if not is_zipfile(file):
            raise ValueError(
                f"The checkpoint {path} is cut off, or no checkpoint: its {file.stat().st_size} bytes do not end with "
                f"a table of contents. Nothing was loaded; use an earlier file.{hint(file)}"
            ) from error
        raise ValueError(
            f"The checkpoint {path} cannot be read: it is damaged, or holds more than tensors and plain values, which "
            "could run code. Nothing was loaded; use an earlier file, or, if you trust it, weights_only=False. "
            f"({type(error).__name__}: {error})"
        ) from error
    forms = {"state_dict": Mapping, "callbacks": Mapping, "pytorch-lightning_version": str}
    # A strategy that shards has put the weights into the module already, and does not give them.
    shards = getattr(getattr(inner, "__self__", None), "restore_checkpoint_after_setup", False)
    if (
        not (isinstance(found, dict) and ("state_dict" in found or shards))
        or any(not isinstance(found[part], form) for part, form in forms.items() if part in found)
        or any(isinstance(state, Tensor) for state in found.get("callbacks", {}).values())
    ):
        raise ValueError(
            f"The checkpoint {path} is none of Lightning's: it has no 'state_dict', or parts of another form. "
            "Nothing was loaded; for weights alone use module.load_state_dict(torch.load(path, weights_only=True))."
        )
    return found


def numbered(name: str, taken: Container[str]) -> str:
    """The name, with the next number where it is taken.

    >>> numbered("ema", ["raw"]), numbered("top1", ["top1"]), numbered("ema_2", ["ema", "ema_2"])
    ('ema', 'top1_2', 'ema_3')
    """
    base, number, found = re.sub(r"_\d+$", "", name), 2, name
    while found in taken:
        found, number = f"{base}_{number}", number + 1
    return found


@contextmanager
def taking(key: str, trainer: Any = None) -> Iterator[None]:
    """Within, what a checkpoint holds for a callback is taken; what fails is an error that names both.

    Raises:
        ValueError: of whatever was raised.
    """
    try:
        yield
    except Exception as error:  # what was saved may be of any form, and each form fails in its own way
        file = f" {trainer.ckpt_path}" if getattr(trainer, "ckpt_path", None) else ""
        # Lightning keeps what it could not restore, and a later fit without a checkpoint would go on from it.
        getattr(getattr(trainer, "_checkpoint_connector", None), "_loaded_checkpoint", {}).clear()
        raise ValueError(
            f"The checkpoint{file} holds a state of {key} that cannot be taken: it is damaged, or of "
            f"another network or version ({type(error).__name__}: {error}). Use another checkpoint, or go on without "
            "this callback."
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
