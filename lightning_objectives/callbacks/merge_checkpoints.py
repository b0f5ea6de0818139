"""Merges the last snapshots of a training into a checkpoint."""

import re
import shutil
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar, Literal

from torch import Tensor

from lightning_objectives._snapshots.merged import (
    EvaluatedMerge,
    new_folder,
    recalibrate_merge,
    refuse_method,
    save_merged,
)
from lightning_objectives._snapshots.rates import warn_of_varying_rates
from lightning_objectives._snapshots.running_sum import RunningSum, refuse_manual_steps, steps_per_epoch
from lightning_objectives._snapshots.window import Window
from lightning_objectives._trainer.callback import Callback, StatefulCallback
from lightning_objectives._trainer.carried import callbacks_of, none_is_of, saved_states
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.lightning import rank_zero_info, rank_zero_warn
from lightning_objectives._trainer.ranks import on_rank_zero
from lightning_objectives._trainer.training_pass import check_training_data
from lightning_objectives._weights.optimizer_steps import OptimizerSteps, steps_so_far
from lightning_objectives._weights.recalibrate import trained_norms
from lightning_objectives._weights.timing import BEGINNING, Epochs, Moment, Timing
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.kinds import Merge

_STATE = "MergeCheckpoints"
"""What the keys of the states begin with, those of subclasses too."""


@dataclass(eq=False)
class MergeCheckpoints(StatefulCallback):
    """Merges the last snapshots of the weights into a checkpoint of its own, and leaves the training unchanged.

    Every ``every_n_steps`` optimizer steps the callback copies the raw weights and writes them to a file, beside the
    training. At the end of ``fit`` it merges the last snapshots into ``merged.ckpt``, which ``load_from_checkpoint``
    opens without this package; whatever the module's ``state_dict`` and ``on_save_checkpoint`` build there, the merge
    stands in the module then. Afterwards the module is as the training left it.

    Args:
        method: the merge. One that asks for the importance of weights, or for scores, is refused: run it on the files
            after the training, by ``merge_checkpoints``.
        last: how many snapshots are merged, at most; as long as there are fewer, those.
        every_n_steps: a snapshot is taken after each optimizer step that this number divides; 500 by default. Steps
            that a gradient scaler skips do not count, and several optimizers that step in one batch count once.
        start_step: the first step that may have a snapshot; the warm-up, and the first fast descent, should end before.
            0 by default.
        evaluate: also merge the snapshots so far at each validation of the fit, from the first snapshot on, so that
            ``LogMetrics(weights=["average"])`` logs the merge's metrics under the method's name (``val/wsm/top1``).
        buffers: ``average`` merges floating buffers as the weights, ``recalibrate`` also re-estimates BatchNorm's
            statistics by an epoch of forward passes, ``module(inputs)``, for each merge.
        keep: what keeps the snapshots until they are merged: ``files``, one for each, or one ``sum`` in memory, to
            which each is added with its share. For the sum the last step must be known beforehand: set ``max_epochs``
            or ``max_steps``, and use automatic optimization. Steps that a gradient scaler skips count there.
        base: for a method that asks for a base, the file of it; by default the weights with which the fit begins, which
            the callback writes to ``base.safetensors`` beside the snapshots. A resumed fit goes on with that file.
        directory: where the files go; by default the folder ``merge`` in the directory of the logger or of the trainer.
            A fit that begins anew takes a new folder: ``merge-v1``, ``merge-v2``, ... Under ``fast_dev_run`` the files
            are written elsewhere, and deleted.
        start_epoch: in place of ``start_step``, the number of epochs after which there may be a snapshot.
        every_n_epochs: in place of ``every_n_steps``, a snapshot is taken at the end of each epoch whose number,
            counted from 1, this one divides. An epoch that the training ends before its last batch does not count. With
            ``keep="sum"`` all epochs must have the same number of batches.

    Raises:
        ValueError: a setting outside its range, or both in steps and in epochs; at setup: ``evaluate`` without a
            callback that logs it, or a strategy whose shards cannot be merged; at the start: ``keep="sum"`` if the last
            step is not known; at the end: a parameter that is NaN or infinite in a snapshot.

    Snapshots are safetensors files with all parameters and persistent buffers, frozen ones too: each can be loaded, and
    ``lightning-objectives merge`` can merge them in other ways. The last ones stay after the fit. With ``keep="sum"``
    there are none. If a training ends before its last step, the snapshots so far are merged if the method's shares of
    fewer are in proportion (true for :class:`WSM`'s shapes, except ``cosine``); otherwise there is no merge. Either way
    you get a warning.

    A buffer that has no finite merge, such as a threshold that is NaN until it is set, is that of the newest snapshot;
    a message names it. A parameter that is NaN or infinite is an error, because the training has failed.

    Checkpoints: they name the snapshots, and resuming goes on with them. A snapshot that has left the window is deleted
    once the two newest checkpoints do not need it any more; if you go on from an older checkpoint, a warning says what
    is lost. A sum lies in the checkpoint itself.

    When to use: see the methods. Cost: a copy of the weights in the CPU's memory for each snapshot, at most three at a
    time; ``last`` files, and a few more; their merge in memory at the end. With ``keep="sum"``: one copy in float32, in
    the CPU's memory and, from the first of these snapshots on, in each checkpoint. Either way the merge takes three
    copies while it is written. On a GPU a step that ends with a snapshot waits for the device, because a snapshot is a
    copy of the weights in the memory of the CPU.
    Interactions: for a method that uses the steps, the learning rate must be constant in the window, or you get a
    warning. A primary average is still
    what is validated and left in the module, and has no part in the merge.

    Example:
        >>> from lightning_objectives.merging import WSM
        >>> MergeCheckpoints(WSM(), last=4, every_n_steps=100, start_step=1000).method
        WSM(shape='1-sqrt', ema_weight=0.2)
    """

    kind = Merge
    example: ClassVar = {"last": 2, "every_n_steps": 2}
    waits: ClassVar = {"": {"cpu_copies": "a snapshot is a copy of the weights in the memory of the CPU"}}
    zero: ClassVar = {"start_step": 10**9}
    leaves_training_alone = True

    method: Merge
    _: KW_ONLY
    last: int = 8
    every_n_steps: int | None = None
    start_step: int | None = None
    evaluate: bool = False
    buffers: Literal["average", "recalibrate"] = "average"
    keep: Literal["files", "sum"] = "files"
    base: str | Path | None = None
    directory: str | Path | None = None
    start_epoch: int | None = None
    every_n_epochs: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Merge):
            raise ValueError(f"method={self.method!r} must be a merge, such as those of lightning_objectives.merging.")
        if self.last < 1:
            raise ValueError(f"last={self.last} must be >= 1.")
        _ = self._timing  # It refuses settings outside their ranges.
        if self.buffers not in ("average", "recalibrate"):
            raise ValueError(f"buffers={self.buffers!r} must be 'average' or 'recalibrate'.")
        if self.keep not in ("files", "sum"):
            raise ValueError(f"keep={self.keep!r} must be 'files' or 'sum'.")
        refuse_method(self.method, keep=self.keep, base=self.base)
        if self.keep == "sum" and self.evaluate:
            raise ValueError(
                "evaluate=True merges the last snapshots at each validation, but keep='sum' has a window at the end "
                "alone. Use keep='files', or evaluate=False."
            )
        self._clear()

    @property
    def _timing(self) -> Timing:
        """When snapshots begin, and when one is taken."""
        return Timing(self.start_step, self.every_n_steps, self.start_epoch, self.every_n_epochs, default_steps=500)

    def methods(self) -> list[Any]:
        """The one method."""
        return [self.method]

    def _clear(self) -> None:
        self._path: Path | None = None
        self._begun = False
        """Whether this very object, and not a copy, has seen a fit begin."""
        self._window: Window | RunningSum | None = None
        self._optimizer_steps: OptimizerSteps | None = None
        self._module: Any = None
        self._writes = False
        self._scratch: Path | None = None
        """Where a trial run (``fast_dev_run``) writes; deleted at its end."""
        self._now = BEGINNING
        self._epochs = Epochs()
        self._norms: list[Any] = []
        self._evaluated = EvaluatedMerge()
        self.pending = None
        self._fitting = False
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what another process gets, has the settings and begins anew.
        fresh = object.__new__(type(self))
        vars(fresh).update(vars(self))
        fresh._clear()
        return vars(fresh)

    # What users and LogMetrics read.

    @property
    def path(self) -> Path | None:
        """The merged checkpoint, after the fit; None if there is no merge; a warning then says why.

        Raises:
            RuntimeError: no training has begun with this object.
        """
        if not self._begun:
            raise self.not_trained("no merge")
        return self._path

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the merge, the method's class in lower case, once there is one to evaluate."""
        return (type(self.method).__name__.lower(),) if self.evaluate and self._evaluated.merged else ()

    def weights(self, name: str) -> dict[str, Tensor]:
        """The merge of the last validation, by name, in each parameter's (and floating buffer's) type, on its device.

        Pass it to ``torch.func.functional_call``; the module stays as it is. Never write to these tensors.
        """
        if not self._begun:
            raise self.not_trained("no merge")
        if name not in self.names:
            raise ValueError(f"name={name!r} must be one of {list(self.names)}.")
        return self._evaluated.on_device(self._module)

    # The run.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew for a fit; the other stages have nothing to merge."""
        if stage != "fit":
            self._fitting = False
            return
        self._detach()
        self._clear()
        super().setup(trainer, pl_module, stage)
        self._fitting = self._begun = True
        if self.keep == "sum":
            refuse_manual_steps(pl_module)
        # Each callback that logs other weights says so in `logged_weights`.
        logged = [getattr(callback, "logged_weights", ()) for callback in callbacks_of(trainer, Callback)]
        if self.evaluate and not any("average" in weights for weights in logged):
            raise ValueError(
                "evaluate=True merges the snapshots at each validation, but no callback logs the merge. Add "
                "LogMetrics(weights=['average']), or use evaluate=False; the merge is written at the end in any case."
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on with the snapshots of the checkpoint."""
        self._begin(trainer, pl_module)
        self._optimizer_steps = OptimizerSteps(trainer.optimizers, rates=True)

    def _begin(self, trainer: Any, pl_module: Any) -> Window | RunningSum:
        if self.buffers == "recalibrate":
            check_training_data(trainer)
        self._module = pl_module
        self._now = Moment(steps_so_far(trainer), trainer.current_epoch)
        self._due = self._timing
        state = self.take_pending()
        if state is not None:
            with taking(self.state_key, trainer):
                self._now = Moment(int(state["steps"]), int(state.get("epochs", 0)))
                (RunningSum if self.keep == "sum" else Window).check(state["window"])
        if trainer.fast_dev_run:
            self._writes = trainer.is_global_zero
            self._scratch = on_rank_zero(trainer, lambda: Path(mkdtemp(prefix="merge-")))
        settings: dict[str, Any] = {"last": self.last, "state": state and state["window"]}
        settings["folder"] = lambda: self._scratch or self._new_folder(trainer)
        if self.keep == "sum":
            if self._timing.in_epochs:  # A sum must know its steps beforehand.
                self._due = self._timing.in_steps(steps_per_epoch(trainer))
            settings |= {"every_n_steps": self._due.every_n_steps, "start_step": self._due.start_step}
            self._window = RunningSum.begin(trainer, pl_module, self.method, **settings)
        else:
            self._window = Window.begin(trainer, pl_module, self.method, base=self.base, **settings)
        return self._window

    def _new_folder(self, trainer: Any) -> Path:
        # Every rank asks for `log_dir`, because Lightning broadcasts it.
        path = Path(self.directory or Path(trainer.log_dir or trainer.default_root_dir) / "merge").absolute()
        windows = [callback._window for callback in callbacks_of(trainer, MergeCheckpoints)]
        used = [window.folder for window in windows if window is not None]
        return on_rank_zero(trainer, lambda: new_folder(path, used))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the epoch."""
        self._epochs.note(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take a snapshot, if this step has one; the raw weights stand in the module now."""
        self._advance()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Take a snapshot, if this epoch has one and its last batch was skipped."""
        self._advance()

    def _advance(self) -> None:
        if self._window is None or self._optimizer_steps is None:
            return
        before, new = self._now, self._optimizer_steps.take()
        # A sum must know the last step beforehand. Nobody knows which steps a scaler will skip, so there they count.
        steps = self._module.global_step if self.keep == "sum" else before.steps + new
        self._now = Moment(steps, max(before.epochs, self._epochs.completed()))
        if not (self._due.due(before, self._now) and self._due.begun(self._now)):
            return
        if steps in (0, *self._window.steps):
            return  # The epoch had no step, so the weights are those of the last snapshot.
        if self.buffers == "recalibrate":
            # The evaluation mode will hide which layers are frozen.
            self._norms = trained_norms(self._module)
        self._window.take(steps, self._optimizer_steps.rates)
        self._optimizer_steps.rates = {}

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Merge the snapshots so far, for those who evaluate the merge."""
        window = self._window
        if not (self._fitting and self.evaluate and window and window.steps) or trainer.sanity_checking:
            return
        if self._evaluated.steps != window.steps:
            self._evaluated = EvaluatedMerge(self._merge(trainer, window), window.steps)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Free the memory that only the validation needs."""
        self._evaluated.free()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the merge."""
        if self._window is None and self.pending is None:
            return  # No training began.
        window = self._window or self._begin(trainer, pl_module)  # The checkpoint left nothing to train.
        if isinstance(window, RunningSum) and not window.has_merge_at(self._now.steps):
            return
        if not window.steps:
            rank_zero_warn(
                f"MergeCheckpoints has no snapshot to merge: {self._now.steps} optimizer steps were taken, with "
                f"{self._timing}. Use smaller settings, or train longer."
            )
            return
        merged = self._merge(trainer, window)
        path = window.folder / "merged.ckpt"
        averages = [callback for callback in callbacks_of(trainer, AverageWeights) if callback.has_averages]
        save_merged(trainer, pl_module, merged, path, raw=[average.weights("raw") for average in averages])
        if self._scratch is not None:
            return
        self._path = path
        rank_zero_info(f"The merge of the steps {window.steps} is in {path}")

    def _merge(self, trainer: Any, window: Window | RunningSum) -> dict[str, Tensor]:
        """Merge the snapshots of the window, on every rank."""
        if self.method.uses_steps():
            self._warned = self._warned or warn_of_varying_rates(window.rates, window.steps)
        merged = on_rank_zero(trainer, window.merge)
        if self.buffers == "recalibrate":
            norms = self._norms or trained_norms(self._module)
            merged = recalibrate_merge(trainer, self._module, merged, norms)
        return merged

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Remove the hooks; the snapshots stay."""
        if self._fitting:
            self._detach()
        super().release(trainer, pl_module)

    def _detach(self) -> None:
        if self._optimizer_steps is not None:
            self._optimizer_steps.remove()
            self._optimizer_steps = None
        if isinstance(self._window, Window):
            self._window.close()
        if self._scratch is not None and self._writes:
            shutil.rmtree(self._scratch)
        self._scratch = None
        self._epochs.forget()
        self._fitting = False

    # Checkpoints.

    @cached_property  # Lightning's profiler asks for it at every hook of every step
    def state_key(self) -> str:
        """Made of the settings, so that the states of several callbacks stay apart."""
        settings = {"method": self.method, "last": self.last, **dict(reversed(self._timing.settings().items()))}
        settings |= {"buffers": self.buffers, "keep": self.keep}
        settings |= {} if self.base is None else {"base": str(self.base)}
        return re.sub(r" at 0x\w+", "", f"{_STATE}{settings!r}")  # Each process has its own addresses.

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and where the snapshots are."""
        if self._window is None:
            return dict(self.pending or {})
        self._advance()  # A callback before this one may save at the end of a batch.
        epochs = {"epochs": self._now.epochs} if self._timing.in_epochs else {}
        return {"steps": self._now.steps, **epochs, "window": self._window.state_dict()}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Warn if the checkpoint's snapshots are of other settings."""
        states = saved_states(checkpoint, _STATE)
        if self._fitting and none_is_of(self.state_key, states):
            rank_zero_warn(
                f"The checkpoint holds snapshots of other settings, {list(states)}, so that {self.state_key} begins "
                "anew with none. Use the old settings to go on with the snapshots."
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state when the training starts; evaluation needs none."""
        if self._fitting:
            super().load_state_dict(state_dict)
