"""What every callback of this package is: a callback of Lightning, under both of its names."""

import re
from collections.abc import Container, Mapping
from typing import Any, ClassVar, TypeVar

from lightning_objectives._trainer.checkpoints import name_unreadable
from lightning_objectives._trainer.lightning import Callback as LightningCallback
from lightning_objectives._trainer.lightning import derive_from_both
from lightning_objectives.kinds import Method

STRATEGIES = {"FSDPStrategy": "fsdp", "DeepSpeedStrategy": "deepspeed", "ModelParallelStrategy": "fsdp2"}
"""The condition that each strategy stands for, by the name of its class, which is the same in both Lightnings."""
_FLAT = "it hides the parameters in flat shards; use ModelParallelStrategy (FSDP2) or DDPStrategy"


class Callback(LightningCallback):
    """Declares what a callback places, changes and refuses, so that ``testing.conformance`` can hold it to that."""

    kind: ClassVar[type[Method] | None] = None
    """The kind of method that it places; None if it places none."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Settings that show it at work in a training of a few steps, where the defaults do not."""
    zero: ClassVar[Mapping[str, Any]] = {}
    """Settings, kept under their names, at which it changes nothing; without any, methods that are not active."""
    beside: ClassVar[tuple[str, ...]] = ()
    """The names of the callbacks without which it has nothing to do."""
    leaves_training_alone: ClassVar[bool] = False
    """Whether the raw weights are those of a training without it."""
    draws: ClassVar[bool] = False
    """Whether its methods may draw from the global random stream, which changes the user's own draws."""
    refuses: ClassVar[Mapping[str, str]] = {"fsdp": _FLAT, "deepspeed": _FLAT}
    """The conditions that it refuses at setup beside those of its bases, and why; the error gives the reason."""

    def methods(self) -> list[Any]:
        """The methods that it places, in their order: instances of its kind, or plain functions."""
        return []

    def unsupported(self) -> dict[str, str]:
        """The conditions that it, or one of its methods, refuses with these settings, and why."""
        declared = [vars(cls).get("refuses", {}) for cls in reversed(type(self).__mro__)]
        declared += [method.unsupported for method in self.methods() if isinstance(method, Method)]
        return {condition: reason for refusals in declared for condition, reason in refusals.items()}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse to train under a strategy that is not supported.

        Raises:
            ValueError: the strategy, and why.
        """
        derive_from_both()
        for strategy in type(trainer.strategy).__mro__ if stage == "fit" else ():
            reason = self.unsupported().get(STRATEGIES.get(strategy.__name__, ""))
            if reason is not None:
                raise ValueError(f"{type(self).__name__} cannot work under {strategy.__name__}: {reason}.")

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Undo what the callback did to the module and the trainer; does nothing the second time.

        It runs at the end of each stage, and after an exception, because Lightning does not call ``teardown`` then.
        """

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Release the module and the trainer."""
        self.release(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Release the module and the trainer."""
        self.release(trainer, pl_module)


class StatefulCallback(Callback):
    """Keeps a state in the checkpoint, and holds back a state that comes before there is something to load it into."""

    pending: Mapping[str, Any] | None = None
    """The state of the checkpoint that the training goes on from, until :meth:`take_pending` takes it."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """See that a checkpoint that cannot be read is an error that names the file."""
        super().setup(trainer, pl_module, stage)
        name_unreadable(trainer)

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Leave the strategy's reader as it was."""
        name_unreadable(trainer).remove()
        super().release(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hold the state back until the training starts."""
        self.pending = state_dict or None

    def take_pending(self) -> Mapping[str, Any] | None:
        """The state that was held back, once; None if there is none."""
        state, self.pending = self.pending, None
        return state


C = TypeVar("C")


def callbacks_of(trainer: Any, cls: type[C]) -> list[C]:
    """The callbacks of a trainer that are of a class, in order; those that a module's mixin brought are among them."""
    callbacks = [getattr(callback, "carried", callback) for callback in trainer.callbacks]
    return [callback for callback in callbacks if isinstance(callback, cls)]


def numbered(name: str, used: Container[str]) -> str:
    """The name, or the next numbered one if it is used already.

    >>> numbered("ema", ["raw"]), numbered("top1", ["top1"]), numbered("ema_2", ["ema", "ema_2"])
    ('ema', 'top1_2', 'ema_3')
    """
    base, number, candidate = re.sub(r"_\d+$", "", name), 2, name
    while candidate in used:
        candidate, number = f"{base}_{number}", number + 1
    return candidate
