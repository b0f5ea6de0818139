"""The callback of the averaging rules."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._trainer.callback import StatefulCallback, callbacks_of, numbered
from lightning_objectives._trainer.carried import CARRIED
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.lightning import rank_zero_warn
from lightning_objectives._trainer.patch import Patch
from lightning_objectives._trainer.training_pass import check_training_data, joint_pass
from lightning_objectives._weights.averages import Averages, Buffers, restore
from lightning_objectives._weights.journal import Journal
from lightning_objectives.kinds import Rule

_STATE = "AverageWeights"
"""What the keys of the averages' states begin with, those of subclasses too."""
_LIGHTNINGS = {"StochasticWeightAveraging", "WeightAveraging"}
_ONE_IS_LEFT = "only one average can be validated, saved and left in the module"


@dataclass(eq=False)
class AverageWeights(StatefulCallback):
    """Average the weights over time, by one rule or by several, beside an unchanged training.

    The primary callback (the only one, unless others say ``primary=False``) lets the average of its first rule stand in
    the module during the validations of ``fit``, in the ``state_dict`` of every checkpoint and after ``fit``. The
    others are kept, saved and given by :meth:`weights`.

    Args:
        rule: the averaging rule, or several.
        start_step: the number of optimizer steps after which the average begins.
        every_n_steps: optimizer steps between two updates. Steps that a gradient scaler skips do not count, and several
            optimizers that step in one batch count once.
        buffers: what the average is evaluated with: ``copy`` the buffers of the training (BatchNorm's statistics belong
            to the raw weights then), ``average`` floating buffers averaged too, never extrapolated, ``recalibrate``
            BatchNorm's statistics re-estimated by an epoch of forward passes, ``module(inputs)``, at each validation.
        device: where the average is kept, ``"cpu"`` say; beside the parameters by default.
        primary: whether this average is validated, saved and left in the module.

    Raises:
        ValueError: a setting outside its range; at setup: a second primary callback, Lightning's own averages beside a
            primary one, or a strategy whose shards cannot be averaged.

    Checkpoints: ``state_dict`` has the keys of the plain module and holds the average (the trained weights, before it
    has begun), so that the file loads without this package; the raw weights and the averages lie in this callback's
    own state, and resuming goes on from them to the bit. A weights-only file holds the average alone.

    When to use: see the rules. Cost: the rule's memory and one pass over the weights per update; at validation weights
    and average change places, so that no further copy is in memory, but for a rule whose average is computed when it is
    read, and for weights of other types or devices than the average's. Interactions: a metric that is monitored is the
    average's; the training itself never sees it. What a validation writes to the weights is written to the average.

    Example:
        >>> from lightning_objectives.averaging import BEMA, EMA
        >>> callback = AverageWeights([BEMA(), EMA(decay=0.99), EMA(decay=0.999)], start_step=100)
        >>> callback.names
        ('bema', 'ema', 'ema_2')
    """

    kind = Rule
    zero: ClassVar = {"start_step": 10**9}
    leaves_training_alone = True
    refuses: ClassVar = {
        "beside_stochastic_weight_averaging": _ONE_IS_LEFT,
        "beside_weight_averaging": _ONE_IS_LEFT,
    }

    rule: Rule | Sequence[Rule]
    _: KW_ONLY
    start_step: int = 0
    every_n_steps: int = 1
    buffers: Buffers = "copy"
    device: str | torch.device | None = None
    primary: bool = True

    def __post_init__(self) -> None:
        rules = self.methods()
        if not rules or not all(isinstance(r, Rule) for r in rules):
            raise ValueError(f"rule={self.rule!r} must be an averaging rule, such as EMA(), or a sequence of them.")
        if self.start_step < 0:
            raise ValueError(f"start_step={self.start_step} must be >= 0.")
        if self.every_n_steps < 1:
            raise ValueError(f"every_n_steps={self.every_n_steps} must be >= 1.")
        if self.buffers not in ("copy", "average", "recalibrate"):
            raise ValueError(f"buffers={self.buffers!r} must be 'copy', 'average' or 'recalibrate'.")
        if self.buffers == "recalibrate" and not self.primary:
            raise ValueError(
                "buffers='recalibrate' is for the average that is validated; with primary=False use 'copy'."
            )
        self._rules = _by_name(rules)
        self._clear()

    def methods(self) -> list[Any]:
        """The averaging rules, the primary one first."""
        return [self.rule] if isinstance(self.rule, Rule) else list(self.rule)

    def _clear(self) -> None:
        self._averages: Averages | None = None
        self._patches: list[Patch] = []
        self.pending = None
        self._foreign: dict[str, Any] | None = None
        """An average that Lightning's own callback made."""
        self._fitting = False
        self._finished = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what another process gets, has the settings and begins anew.
        blank: dict[str, Any] = {"_averages": None, "_patches": [], "pending": None, "_foreign": None}
        return {**vars(self), **blank, "_fitting": False, "_finished": False}

    # What users ask for.

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the averages: the rules' class names in lower case, numbered where they repeat."""
        return tuple(self._rules)

    def weights(self, name: str) -> dict[str, Tensor]:
        """The weights of an average, or ``"raw"``, by parameter name, in each parameter's type and place.

        Meant for ``torch.func.functional_call``; the module is not touched. Never write to them, and clone what is to
        outlive the hook: they may be the module's own. Before the average has begun they are the raw weights.
        """
        return self._begun(name).weights(name)

    @contextmanager
    def applied(self, module: nn.Module, name: str | None = None) -> Iterator[None]:
        """Within, an average (the first, or the one named) stands in the module; afterwards what stood there before."""
        averages = self._begun(name or self.names[0])
        if module is not averages.network:
            raise ValueError(
                f"applied(): this {type(module).__name__} is not the module that was trained. Use "
                "module.load_state_dict(callback.averaged_state_dict()) for another one."
            )
        if not averages.updates:
            yield
            return
        with averages.applied(name or self.names[0]):
            yield

    def averaged_state_dict(self, name: str | None = None) -> dict[str, Any]:
        """A copy of the module's ``state_dict()`` that holds an average: the first, or the one named."""
        averages = self._begun(name or self.names[0])
        state = dict(averages.network.state_dict())
        averages.fill(state, name or self.names[0])
        return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}

    def _begun(self, name: str) -> Averages:
        if name not in (*self.names, "raw"):
            raise ValueError(f"name={name!r} must be one of {[*self.names, 'raw']}.")
        if self._averages is None:
            raise RuntimeError("There are no averages yet: they begin with the training, in trainer.fit().")
        return self._averages

    def unsupported(self) -> dict[str, str]:
        """Another average beside a primary one."""
        return super().unsupported() if self.primary else {}

    # The run.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew for a fit; the other stages evaluate the weights that they find."""
        if stage != "fit":
            self._fitting = False
            return
        self._detach()
        self._clear()
        super().setup(trainer, pl_module, stage)
        self._fitting = True
        primaries = [callback for callback in callbacks_of(trainer, AverageWeights) if callback.primary]
        if len(primaries) > 1:
            raise ValueError(
                f"{len(primaries)} AverageWeights callbacks are primary, of {[p.names for p in primaries]}, but "
                f"{_ONE_IS_LEFT}. Pass primary=False to the others."
            )
        if self.primary:
            self._refuse_lightnings(trainer)

    def _refuse_lightnings(self, trainer: Any) -> None:
        for callback in trainer.callbacks:
            found = _LIGHTNINGS & {cls.__name__ for cls in type(callback).__mro__}
            if found:
                raise ValueError(
                    f"AverageWeights of {self.names} stands beside Lightning's {found.pop()}, but {_ONE_IS_LEFT}. "
                    "Keep one of the two, or pass primary=False to AverageWeights."
                )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on from what was loaded."""
        averages = self._build(trainer, pl_module)
        averages.watch(trainer.optimizers)
        if self.primary:
            self._patches.append(Patch(pl_module, "on_save_checkpoint", self._save))

    def _build(self, trainer: Any, pl_module: Any) -> Averages:
        if self.buffers == "recalibrate":
            check_training_data(trainer)
        others = [callback._averages for callback in callbacks_of(trainer, AverageWeights)]
        averages = Averages(
            pl_module,
            self._rules,
            start_step=self.start_step,
            every_n_steps=self.every_n_steps,
            buffers=self.buffers,
            device=None if self.device is None else torch.device(self.device),
            # Without a state of ours the count of the trainer is the best guess; it adds the optimizers up.
            steps=trainer.global_step // max(1, len(trainer.optimizers)),
            journal=next((other.journal for other in others if other is not None), Journal()),
            passes=lambda: joint_pass(trainer, pl_module, self._averages.norms if self._averages else ()),
        )
        if self.pending is not None:
            with taking(self.state_key, trainer):
                averages.load_state_dict(self.pending)
        elif self._foreign is not None:
            with taking("WeightAveraging", trainer):
                anew = averages.adopt(self._foreign["average"], updates=self._foreign["updates"])
            if anew:
                rank_zero_warn(f"The checkpoint's average is a plain one; {anew} need more than that and begin anew.")
        self.pending = self._foreign = None
        self._averages = averages
        return averages

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Training goes on with the raw weights, however the validation ended."""
        if self._averages is not None:
            self._averages.swap_out()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the weights into the averages, if a step was taken."""
        if self._averages is not None:
            self._averages.update()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Let the primary average stand in the module, in the validations of a fit."""
        averages = self._averages
        if averages is not None and self._fitting and self.primary and averages.updates:
            averages.swap_in(self.names[0], exchange=True)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the raw weights back."""
        if self._averages is not None and self._fitting:
            self._averages.swap_out()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the primary average in the module."""
        if self._averages is not None:
            self._finish(self._averages)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """The same, where a checkpoint was resumed that had nothing left to train."""
        if self._averages is None and (self.pending is not None or self._foreign is not None):
            self._finish(self._build(trainer, pl_module))

    def _finish(self, averages: Averages) -> None:
        averages.update()
        averages.swap_out()
        self._finished = True
        if not averages.updates:
            rank_zero_warn(
                f"AverageWeights of {self.names} never began: {averages.steps} optimizer steps were taken, with "
                f"start_step={self.start_step} and every_n_steps={self.every_n_steps}. The module holds the trained "
                "weights."
            )
        elif self.primary:
            averages.swap_in(self.names[0])

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Take the hooks off; after a fit the raw weights and the averages stay here."""
        if self._fitting:
            self._detach()
        super().release(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Put the raw weights back, since teardown is not called."""
        if not self._fitting or self._averages is None:
            self.release(trainer, pl_module)
            return
        if not self._finished:
            self._averages.swap_out()

        # Callbacks that save now come after this one, and the strategy after them.
        def detach(inner: Any, *args: Any) -> Any:
            last.remove()
            self.release(trainer, pl_module)
            return inner(*args)

        last = Patch(trainer.strategy, "on_exception", detach)

    def _detach(self) -> None:
        while self._patches:
            self._patches.pop().remove()
        if self._averages is not None:
            self._averages.unwatch()
            if not self._finished:
                self._averages.swap_out()
        self._fitting = False

    # Checkpoints.

    @cached_property  # Lightning's profiler asks for it at every hook of every step
    def state_key(self) -> str:
        """Made of the settings, so that several callbacks keep their states apart."""
        settings = {"rule": list(self._rules.values()), "start_step": self.start_step}
        settings |= {"every_n_steps": self.every_n_steps, "buffers": self.buffers, "primary": self.primary}
        return f"{_STATE}{settings!r}"

    def state_dict(self) -> dict[str, Any]:
        """The averages, and the raw weights where the checkpoint's own ``state_dict`` holds the average."""
        if self._averages is None:
            return dict(self.pending or {})
        self._averages.update()  # a callback before this one may save at the end of a batch
        return self._averages.state_dict(raw=self.primary)

    def _save(self, inner: Any, checkpoint: dict[str, Any]) -> Any:
        if self._averages is not None:
            self._averages.update()
            self._averages.fill(checkpoint["state_dict"], self.names[0])
        return inner(checkpoint)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the raw weights back into the module before a training goes on; the module has loaded the average."""
        if not self._fitting:
            return
        states = checkpoint.get("callbacks", {})
        ours = {key: state for key, state in states.items() if str(key).removeprefix(CARRIED).startswith(_STATE)}
        for key, state in ours.items():
            with taking(key, trainer):
                averaged = {name for average in state["averages"].values() for name in average["slots"]["average"]}
                if state["raw"] and averaged - state["raw"].keys():
                    raise ValueError(
                        f"there are averages of {sorted(averaged - state['raw'].keys())}, but no raw weights"
                    )
                restore(pl_module, state["raw"])
        if ours and not ours.keys() & {self.state_key, CARRIED + self.state_key}:
            rank_zero_warn(
                f"The checkpoint holds averages of other settings, {list(ours)}: the training goes on from its raw "
                f"weights, and {self.state_key} begins anew."
            )
        if not ours and "current_model_state" in checkpoint and "averaging_state" in checkpoint:
            with taking("WeightAveraging", trainer):
                updates = int(checkpoint["averaging_state"]["n_averaged"])
                if updates:
                    self._foreign = {"average": checkpoint["state_dict"], "updates": updates}
                pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, now or when the training starts; evaluation needs none."""
        if not self._fitting:
            return
        # The raw weights are in the module already, see on_load_checkpoint, and others may change them from there.
        state_dict = {**state_dict, "raw": {}}
        if self._averages is None:
            self.pending = state_dict
        else:  # a tuner restores in the middle of a run
            self._averages.load_state_dict(state_dict)


def _by_name(rules: Sequence[Rule]) -> dict[str, Rule]:
    named: dict[str, Rule] = {}
    for rule in rules:
        named[numbered(type(rule).__name__.lower(), named)] = rule
    return named
