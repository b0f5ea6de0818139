"""Averages the weights of a module over time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._trainer.callback import StatefulCallback
from lightning_objectives._trainer.carried import callbacks_of, none_is_of, saved_states
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.lightning import rank_zero_warn
from lightning_objectives._trainer.names import by_class
from lightning_objectives._trainer.patch import Patch
from lightning_objectives._trainer.training_pass import check_training_data, joint_pass
from lightning_objectives._weights.averages import Averages, Buffers
from lightning_objectives._weights.checkpoint_hooks import CheckpointHooks
from lightning_objectives._weights.journal import Journal
from lightning_objectives._weights.lightning_average import ONE_IS_LEFT, LightningAverage, refuse_lightning_averages
from lightning_objectives._weights.migration import STATE, MigratedStates
from lightning_objectives._weights.optimizer_steps import steps_so_far
from lightning_objectives._weights.saving import restore_raw
from lightning_objectives._weights.timing import Epochs, Moment, Timing
from lightning_objectives.kinds import Rule


@dataclass(eq=False)
class AverageWeights(StatefulCallback):
    """Averages the weights over time, by one rule or by several, and leaves the training unchanged.

    A callback is primary unless you pass ``primary=False``; only one can be. The average of its first rule stands in
    the module during the validations of ``fit``, in the ``state_dict`` of every checkpoint, and after ``fit``. All
    other averages are kept and saved too, and :meth:`weights` returns them.

    Args:
        rule: the averaging rule, or several.
        start_step: the number of optimizer steps after which the average begins; 0 by default.
        every_n_steps: optimizer steps between two updates; 1 by default. Steps that a gradient scaler skips do not
            count. If several optimizers take turns, those that step in one batch count once, and weights that only some
            of them step are averaged after the steps of these alone.
        buffers: the buffers that the average is evaluated with. ``copy`` takes those of the training, so BatchNorm's
            statistics belong to the raw weights. ``average`` averages the floating ones too, and never extrapolates
            them. ``recalibrate`` re-estimates BatchNorm's statistics at each validation, by an epoch of forward passes,
            ``module(inputs)``.
        device: where the average is kept, for example ``"cpu"``; beside the parameters by default.
        primary: whether this average is validated, saved and left in the module.
        parameters: the pattern, or several, of the names of the parameters that are averaged, in which ``*`` stands for
            anything: ``"generator.*"``. The others stay raw everywhere. By default, all trainable ones are averaged.
        start_epoch: in place of ``start_step``, the number of epochs after which the average begins.
        every_n_epochs: in place of ``every_n_steps``, epochs between two updates, each after the last batch. An epoch
            that the training ends before its last batch does not count.

    Raises:
        ValueError: a setting outside its range, or both in steps and in epochs; at setup: a second primary callback,
            Lightning's own averages beside a primary one, or a strategy whose shards cannot be averaged; when the
            training starts: a pattern of ``parameters`` that matches none.

    Checkpoints: ``state_dict`` has the keys of the plain module and holds the average (before the average begins: the
    trained weights), so the file loads without this package. The raw weights and the averages lie in the state of this
    callback, and resuming goes on from them to the bit. A weights-only file holds the average alone. The average stands
    in the module while ``state_dict`` and the hooks ``on_save_checkpoint`` of the module and of callbacks run, so what
    they rename, cast, prune or build anew holds it too. So does a module that the file pickles, as a copy. If a file
    would hold raw weights instead, saving is an error. If the module's ``on_load_checkpoint`` renames or converts the
    weights of an older file, raw weights and averages follow it.

    When to use: see the rules. Cost: the rule's memory, and one pass over the weights per update. At validation,
    weights and average change places, so the memory holds no further copy. Two things need a copy: a rule that computes
    its average when you read it, and weights of another type or on another device than the average. Interactions: a
    monitored metric is that of the average; the training itself never sees the average. What a validation writes to the
    weights is written to the average.

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
        "beside_stochastic_weight_averaging": ONE_IS_LEFT,
        "beside_weight_averaging": ONE_IS_LEFT,
    }

    rule: Rule | Sequence[Rule]
    _: KW_ONLY
    start_step: int | None = None
    every_n_steps: int | None = None
    buffers: Buffers = "copy"
    device: str | torch.device | None = None
    primary: bool = True
    parameters: str | Sequence[str] | None = None
    start_epoch: int | None = None
    every_n_epochs: int | None = None

    def __post_init__(self) -> None:
        rules = self.methods()
        if not rules or not all(isinstance(r, Rule) for r in rules):
            raise ValueError(f"rule={self.rule!r} must be an averaging rule, such as EMA(), or a sequence of them.")
        self._timing.settings()  # It refuses settings outside their ranges.
        if self.buffers not in ("copy", "average", "recalibrate"):
            raise ValueError(f"buffers={self.buffers!r} must be 'copy', 'average' or 'recalibrate'.")
        if self.parameters is not None and not self.parameters:
            raise ValueError(
                f"parameters={self.parameters!r} averages nothing. Use a pattern like 'layers.*', or None."
            )
        if self.buffers == "recalibrate" and not self.primary:
            raise ValueError("buffers='recalibrate' is for the average that is validated: set primary=True, or 'copy'.")
        self._rules: dict[str, Rule] = by_class(rules)
        self._clear()

    _timing = property(lambda self: Timing(self.start_step, self.every_n_steps, self.start_epoch, self.every_n_epochs))
    """When the average begins, and when it takes the weights in."""

    def methods(self) -> list[Any]:
        """The averaging rules, the primary one first."""
        return [self.rule] if isinstance(self.rule, Rule) else list(self.rule)

    def _clear(self) -> None:
        self._averages: Averages | None = None
        self._hooks: list[CheckpointHooks | MigratedStates] = []
        """What stands on the module's own checkpoint hooks."""
        self._lightning_average: LightningAverage | None = None
        self.pending = None
        self._epochs = Epochs()
        self._fitting = False
        self._finished = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what another process gets, has the settings and begins anew.
        fresh = object.__new__(type(self))
        vars(fresh).update(vars(self))
        fresh._clear()
        return vars(fresh)

    # What users call.

    @property
    def has_averages(self) -> bool:
        """Whether :meth:`weights` returns something: from the beginning of a training on."""
        return self._averages is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the averages: the rules' class names in lower case, numbered where they repeat."""
        return tuple(self._rules)

    def weights(self, name: str) -> dict[str, Tensor]:
        """The weights of an average, or ``"raw"``, by parameter name, in each parameter's type and on its device.

        Pass them to ``torch.func.functional_call``; the module stays as it is. Never write to these tensors, which may
        be the module's own, and clone those that you need after the hook. Before the average begins, they are the raw
        weights.
        """
        return self._averages_with(name).weights(name)

    @contextmanager
    def applied(self, module: nn.Module, name: str | None = None) -> Iterator[None]:
        """Let an average (the first, or the one named) stand in the module within a ``with`` block."""
        averages = self._averages_with(name or self.names[0])
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
        """Copy the module's ``state_dict()`` with an average in it: the first, or the one named."""
        averages = self._averages_with(name or self.names[0])
        with averages.stand_in(name or self.names[0]):
            state = averages.network.state_dict()
            return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}

    def _averages_with(self, name: str) -> Averages:
        if name not in (*self.names, "raw"):
            raise ValueError(f"name={name!r} must be one of {[*self.names, 'raw']}.")
        if self._averages is None:
            raise self.not_trained("no averages")
        return self._averages

    def unsupported(self) -> dict[str, str]:
        """Refuse another average beside a primary one."""
        return super().unsupported() if self.primary else {}

    # The run.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew for a fit; the other stages evaluate the weights that stand in the module."""
        if stage != "fit":
            self._fitting = False
            return
        self._detach()
        self._clear()
        super().setup(trainer, pl_module, stage)
        self._fitting = True
        self._hooks.append(MigratedStates(pl_module))
        primaries = [callback for callback in callbacks_of(trainer, AverageWeights) if callback.primary]
        if len(primaries) > 1:
            raise ValueError(
                f"{len(primaries)} AverageWeights callbacks are primary, of {[p.names for p in primaries]}, but "
                f"{ONE_IS_LEFT}. Pass primary=False to the others."
            )
        if self.primary:
            refuse_lightning_averages(trainer, self.names)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on from the state of the checkpoint."""
        averages = self._build(trainer, pl_module)
        averages.watch(trainer.optimizers)
        if self.primary:
            self._hooks.append(CheckpointHooks(trainer, pl_module, averages, self.names[0], self.state_key))

    def _build(self, trainer: Any, pl_module: Any) -> Averages:
        if self.buffers == "recalibrate":
            check_training_data(trainer)
        others = [callback._averages for callback in callbacks_of(trainer, AverageWeights)]
        averages = Averages(
            pl_module,
            self._rules,
            timing=self._timing,
            buffers=self.buffers,
            device=None if self.device is None else torch.device(self.device),
            now=Moment(steps_so_far(trainer), trainer.current_epoch),
            epochs=self._epochs.completed,
            journal=next((other.journal for other in others if other is not None), Journal()),
            passes=partial(joint_pass, trainer, pl_module),
            parameters=[self.parameters] if isinstance(self.parameters, str) else self.parameters,
        )
        state, lightning_average = self.take_pending(), self._lightning_average
        if state is not None:
            with taking(self.state_key, trainer):
                averages.load_state_dict(state)
        elif lightning_average is not None:
            lightning_average.continue_in(averages, trainer)
        self._lightning_average = None
        self._averages = averages
        return averages

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Put the raw weights back, however the validation ended."""
        self._epochs.note(trainer)
        if self._averages is not None:
            self._averages.swap_out()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the weights into the averages, if an optimizer step was taken."""
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

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the weights in at the end of an epoch, and note which are pruned before that becomes permanent."""
        if self._averages is not None:
            self._averages.update()  # The last batch may have been skipped.
            self._averages.note_masks()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the primary average in the module."""
        if self._averages is not None:
            self._finish(self._averages)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the primary average in the module if the checkpoint left nothing to train."""
        if self._averages is None and (self.pending or self._lightning_average):
            self._finish(self._build(trainer, pl_module))

    def _finish(self, averages: Averages) -> None:
        averages.update()
        averages.swap_out()
        self._finished = True
        if not averages.updates:
            rank_zero_warn(
                f"AverageWeights of {self.names} never began: {averages.steps} optimizer steps were taken, with "
                f"{self._timing}, so the module holds the trained weights. Use smaller settings, or train longer."
            )
        elif self.primary:
            averages.swap_in(self.names[0])
            averages.prune()

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Remove the hooks; after a fit this callback keeps the raw weights and the averages."""
        if self._fitting:
            self._detach()
        super().release(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Put the raw weights back, and remove the hooks after those who save now."""
        if not self._fitting or self._averages is None:
            self.release(trainer, pl_module)
            return
        if not self._finished:
            self._averages.swap_out()

        # Callbacks after this one may save now, and the strategy is called after all of them.
        def release(inner: Any, *args: Any) -> Any:
            last.remove()
            self.release(trainer, pl_module)
            return inner(*args)

        last = Patch(trainer.strategy, "on_exception", release)

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._averages is not None:
            self._averages.unwatch()
            if not self._finished:
                self._averages.swap_out()
        self._fitting = False
        self._epochs.forget()

    # Checkpoints.

    @cached_property  # Lightning's profiler asks for it at every hook of every step
    def state_key(self) -> str:
        """Made of the settings, so that the states of several callbacks stay apart."""
        settings = {"rule": list(self._rules.values()), **self._timing.settings()}
        settings |= {"buffers": self.buffers, "primary": self.primary}
        if self.parameters is not None:  # Otherwise the key stays that of earlier versions.
            settings["parameters"] = self.parameters
        return f"{STATE}{settings!r}"

    def state_dict(self) -> dict[str, Any]:
        """The averages, and the raw weights if the checkpoint's own ``state_dict`` holds the average."""
        if self._averages is None:
            return dict(self.pending or {})
        self._averages.update()  # A callback before this one may save after a batch.
        return self._averages.state_dict(raw=self.primary)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the raw weights into the module before a training goes on, because the checkpoint's hold the average."""
        if not self._fitting:
            return
        states = saved_states(checkpoint, STATE)
        for key, state in states.items():
            with taking(key, trainer):
                restore_raw(pl_module, state)
        if none_is_of(self.state_key, states):
            rank_zero_warn(
                f"The checkpoint holds averages of other settings, {list(states)}, so that {self.state_key} begins "
                "anew; the training goes on from the raw weights. Use the old settings to go on with the averages."
            )
        if not states:
            self._lightning_average = LightningAverage.load(checkpoint, trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, now or when the training starts; evaluation needs none."""
        if not self._fitting:
            return
        # on_load_checkpoint has put the raw weights into the module already, and others may have changed them since.
        state = {**state_dict, "raw": {}}
        if self._averages is None:
            super().load_state_dict(state)
        else:  # A tuner restores in the middle of a run.
            self._averages.load_state_dict(state)
