"""What every callback of this package is: a Callback under both names of Lightning."""

import re
from collections.abc import Container, Mapping
from typing import Any, ClassVar, TypeVar

from lightning_objectives._trainer.checkpoints import _unreadable_are_named
from lightning_objectives._trainer.lightning import Callback as _Both
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


def callbacks_of(trainer: Any, kind: type[C]) -> list[C]:
    """The callbacks of a trainer that are of a class, those that a module brought by a mixin included, in order."""
    found = [getattr(callback, "carried", callback) for callback in trainer.callbacks]
    return [callback for callback in found if isinstance(callback, kind)]


def numbered(name: str, taken: Container[str]) -> str:
    """The name, with the next number where it is taken.

    >>> numbered("ema", ["raw"]), numbered("top1", ["top1"]), numbered("ema_2", ["ema", "ema_2"])
    ('ema', 'top1_2', 'ema_3')
    """
    base, number, found = re.sub(r"_\d+$", "", name), 2, name
    while found in taken:
        found, number = f"{base}_{number}", number + 1
    return found
