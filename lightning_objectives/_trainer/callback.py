"""The base classes of all callbacks: what a callback declares, refuses, releases and keeps in checkpoints."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning_objectives._trainer.checkpoints import explain_read_errors
from lightning_objectives._trainer.lightning import Callback as LightningCallback
from lightning_objectives.kinds import Method
from lightning_objectives.signals import Source

STRATEGIES = {"FSDPStrategy": "fsdp", "DeepSpeedStrategy": "deepspeed", "ModelParallelStrategy": "fsdp2"}
"""The condition that each strategy is, by the name of its class, which is the same under both names of Lightning."""
_FLAT = "it hides the parameters in flat shards; use ModelParallelStrategy (FSDP2) or DDPStrategy"


class Callback(LightningCallback):
    """Declares what a callback places, changes and refuses; ``testing.conformance`` checks that it is true."""

    kind: ClassVar[type[Method] | None] = None
    """The kind of method that the callback places, or what its kinds share; None if it places none."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Settings with which it acts in a training of a few steps, if it does not with the defaults."""
    zero: ClassVar[Mapping[str, Any]] = {}
    """Settings with which it changes nothing; if empty, it changes nothing while its methods are not active."""
    beside: ClassVar[tuple[str, ...]] = ()
    """The names of the callbacks that it needs beside it."""
    provides: ClassVar[Source | None] = None
    """The source of the signals that it provides for the methods of other callbacks; None if it provides none."""
    leaves_training_alone: ClassVar[bool] = False
    """Whether the raw weights are the same as in a training without it."""
    changes_tests: ClassVar[bool] = False
    """Whether what the network computes in ``test`` and ``predict`` differs from a test without it."""
    draws: ClassVar[bool] = False
    """Whether its methods may draw from the global random stream, and so change the user's own draws."""
    refuses: ClassVar[Mapping[str, str]] = {"fsdp": _FLAT, "deepspeed": _FLAT}
    """The conditions that it refuses at setup, in addition to those of its bases, each with the reason."""

    waits: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Where a step must wait for the device: for a condition of ``testing.conformance`` on a GPU, or ``""`` for all of
    them, the functions that wait, each with the reason."""

    passes_before: ClassVar[int] = 0
    """How often the module goes through the training data before the first step."""

    @property
    def passes(self) -> int:
        """How often the network runs for each batch."""
        return 1

    def methods(self) -> list[Any]:
        """Return the methods that the callback places, in their order: instances of its kind, or plain functions."""
        return []

    def unsupported(self) -> dict[str, str]:
        """Return the conditions that the callback or one of its methods refuses with these settings, and why."""
        declared = [vars(cls).get("refuses", {}) for cls in reversed(type(self).__mro__)]
        declared += [method.unsupported for method in self.methods() if isinstance(method, Method)]
        return {condition: reason for refusals in declared for condition, reason in refusals.items()}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse to train under a strategy that is not supported.

        Raises:
            ValueError: with the strategy, and the reason.
        """
        for strategy in type(trainer.strategy).__mro__ if stage == "fit" else ():
            reason = self.unsupported().get(STRATEGIES.get(strategy.__name__, ""))
            if reason is not None:
                raise ValueError(f"{type(self).__name__} cannot work under {strategy.__name__}: {reason}.")

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Undo what the callback did to the module and the trainer; does nothing the second time.

        This runs at the end of each stage, and also after an exception, because Lightning does not call ``teardown``
        then.
        """

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Release the module and the trainer."""
        self.release(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Release the module and the trainer."""
        self.release(trainer, pl_module)


class StatefulCallback(Callback):
    """Keeps a state in the checkpoint. Lightning loads it before the training starts; here it waits until then."""

    pending: Mapping[str, Any] | None = None
    """The state of the checkpoint that the training goes on from, until :meth:`take_pending` removes it."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make errors about a checkpoint that cannot be read name the file."""
        super().setup(trainer, pl_module, stage)
        explain_read_errors(trainer)

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Put the strategy's own reader back."""
        explain_read_errors(trainer).remove()
        super().release(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hold the state back until the training starts."""
        self.pending = state_dict or None

    def not_trained(self, lacks: str) -> RuntimeError:
        """The error for someone who asks for results of a training that this object has not seen.

        Args:
            lacks: what the object does not have.
        """
        return RuntimeError(
            f"No training has begun with this {type(self).__name__} object, so it has {lacks}. Call trainer.fit() "
            "first. If you have, a framework has perhaps trained a copy of the callback: ask the one in "
            "trainer.callbacks."
        )

    def take_pending(self) -> Mapping[str, Any] | None:
        """Return the state that waits, once; None if there is none."""
        state, self.pending = self.pending, None
        return state
