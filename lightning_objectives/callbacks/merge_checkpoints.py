"""The callback of the merges."""

import re
import shutil
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar, Literal

from torch import Tensor

from lightning_objectives._snapshots.merged import Evaluated, new_folder, recalibrated, save_merged
from lightning_objectives._snapshots.rates import warn_if_varied
from lightning_objectives._snapshots.running_sum import RunningSum, refuse_manual_steps
from lightning_objectives._snapshots.window import Window
from lightning_objectives._trainer.callback import StatefulCallback, callbacks_of
from lightning_objectives._trainer.carried import CARRIED
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.lightning import rank_zero_info, rank_zero_warn
from lightning_objectives._trainer.ranks import on_rank_zero
from lightning_objectives._trainer.training_pass import check_training_data
from lightning_objectives._weights.optimizer_steps import OptimizerSteps
from lightning_objectives._weights.recalibrate import trained_norms
from lightning_objectives.kinds import Merge

_STATE = "MergeCheckpoints"
"""What the keys of the states begin with, those of subclasses too."""


@dataclass(eq=False)
class MergeCheckpoints(StatefulCallback):
    """Merge the last snapshots of the weights into a checkpoint of its own, beside an unchanged training.

    Every ``every_n_steps`` optimizer steps the raw weights are copied and written to a file beside the training, which
    goes on from the raw weights. At the end of ``fit`` the last of them are merged into ``merged.ckpt``, which
    ``load_from_checkpoint`` opens without this package. The module is left as the training leaves it.

    Args:
        method: gives the coefficients.
        last: how many snapshots are merged, at most; as long as there are fewer, those.
        every_n_steps: a snapshot after each optimizer step that this divides. Steps that a gradient scaler skips do not
            count, and several optimizers that step in one batch count once.
        start_step: the first step that may have one; end the warm-up, and the first fast descent, before.
        evaluate: merge what there is at each validation of the fit, too, for ``LogMetrics(weights=["average"])``, which
            logs its metrics under the method's name (``val/wsm/top1``), from the first snapshot on.
        buffers: ``average`` merges floating buffers as the weights, ``recalibrate`` also re-estimates BatchNorm's
            statistics by an epoch of forward passes, ``module(inputs)``, for each merge.
        keep: what stands for the snapshots until they are merged: a file each, or one ``sum`` in memory, to which each
            is added by its share. The sum wants the last step to be known beforehand: ``max_epochs`` or ``max_steps``,
            and automatic optimization. Steps that a gradient scaler skips count there.
        directory: where the files go; by default the folder ``merge`` in the logger's, or the trainer's, directory. A
            fit that begins anew takes a folder that is not there yet: ``merge-v1``, ``merge-v2``, ... Under
            ``fast_dev_run`` the files are written elsewhere, and deleted.

    Raises:
        ValueError: a setting outside its range; at setup: ``evaluate`` without a callback that logs it, or a strategy
            whose shards cannot be merged; at the start: ``keep="sum"`` where the last step is not known.

    Snapshots are safetensors files with all parameters and persistent buffers, frozen ones too: each can be loaded, and
    merged in other ways by ``lightning-objectives merge``. The last ones stay after the fit. With ``keep="sum"`` there
    are none. A training that ends before its last step has the merge of those so far, if the method's shares of fewer
    are in proportion (of :class:`WSM`'s shapes, all but ``cosine``), else none; either way a warning tells.

    Checkpoints: they tell which snapshots there are, and resuming goes on with them. A snapshot that has left the
    window is deleted once the two newest checkpoints can do without it; going on from an older one warns of what is
    lost. A sum lies in the checkpoint itself.

    When to use: see the methods. Cost: a copy of the weights in the CPU's memory for each snapshot, at most three at a
    time; ``last`` files, and a few more; their merge in memory at the end. With ``keep="sum"``: one copy in float32, in
    the CPU's memory and, from the first of these snapshots on, in each checkpoint. Either way the merge takes three
    copies while it is written.
    Interactions: the learning rate must be constant in the window, or a warning comes; a primary average stays what is
    validated and left in the module, and has no part in the merge.

    Example:
        >>> from lightning_objectives.merging import WSM
        >>> MergeCheckpoints(WSM(), last=4, every_n_steps=100, start_step=1000).path is None
        True
    """

    kind = Merge
    example: ClassVar = {"last": 2, "every_n_steps": 2}
    zero: ClassVar = {"start_step": 10**9}
    leaves_training_alone = True

    method: Merge
    _: KW_ONLY
    last: int = 8
    every_n_steps: int = 500
    start_step: int = 0
    evaluate: bool = False
    buffers: Literal["average", "recalibrate"] = "average"
    keep: Literal["files", "sum"] = "files"
    directory: str | Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Merge):
            raise ValueError(f"method={self.method!r} must be a merge, such as those of lightning_objectives.merging.")
        if self.last < 1:
            raise ValueError(f"last={self.last} must be >= 1.")
        if self.every_n_steps < 1:
            raise ValueError(f"every_n_steps={self.every_n_steps} must be >= 1.")
        if self.start_step < 0:
            raise ValueError(f"start_step={self.start_step} must be >= 0.")
        if self.buffers not in ("average", "recalibrate"):
            raise ValueError(f"buffers={self.buffers!r} must be 'average' or 'recalibrate'.")
        if self.keep not in ("files", "sum"):
            raise ValueError(f"keep={self.keep!r} must be 'files' or 'sum'.")
        if self.keep == "sum" and self.evaluate:
            raise ValueError(
                "evaluate=True merges the last snapshots at each validation, but keep='sum' has a window at the end "
                "alone. Use keep='files', or evaluate=False."
            )
        self._clear()

    def methods(self) -> list[Any]:
        """The one method."""
        return [self.method]

    def _clear(self) -> None:
        self.path: Path | None = None
        """The merged checkpoint, after the fit."""
        self._window: Window | RunningSum | None = None
        self._optimizers: OptimizerSteps | None = None
        self._module: Any = None
        self._writes = False
        self._scratch: Path | None = None
        """Where a trial run (``fast_dev_run``) writes, which is deleted."""
        self._steps = 0
        self._norms: list[Any] = []
        self._evaluated = Evaluated()
        self.pending = None
        self._fitting = False
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what another process gets, has the settings and begins anew.
        blank = dict.fromkeys(("path", "_window", "_scratch", "_optimizers", "_module", "pending"))
        return {**vars(self), **blank, "_norms": [], "_evaluated": Evaluated(), "_fitting": False}

    # What is evaluated.

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the merge, the method's class in lower case, once there is one to evaluate."""
        return (type(self.method).__name__.lower(),) if self.evaluate and self._evaluated.merged else ()

    def weights(self, name: str) -> dict[str, Tensor]:
        """The merge of the last validation, by name, in each parameter's (and floating buffer's) type and place.

        Meant for ``torch.func.functional_call``; the module is not touched. Never write to them.
        """
        if name not in self.names:
            raise ValueError(f"name={name!r} must be one of {list(self.names)}.")
        return self._evaluated.placed(self._module)

    # The run.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew for a fit; the other stages have nothing to merge."""
        if stage != "fit":
            self._fitting = False
            return
        self._detach()
        self._clear()
        super().setup(trainer, pl_module, stage)
        self._fitting = True
        if self.keep == "sum":
            refuse_manual_steps(pl_module)
        if self.evaluate:
            from lightning_objectives.callbacks.log_metrics import LogMetrics  # which imports this file

            if not any("average" in callback.weights for callback in callbacks_of(trainer, LogMetrics)):
                raise ValueError(
                    "evaluate=True: no callback logs the merge. Add LogMetrics(weights=['average']), or say "
                    "evaluate=False; the merge is written at the end in any case."
                )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on with the snapshots of the checkpoint."""
        self._begin(trainer, pl_module)
        self._optimizers = OptimizerSteps(trainer.optimizers, rates=True)

    def _begin(self, trainer: Any, pl_module: Any) -> Window | RunningSum:
        if self.buffers == "recalibrate":
            check_training_data(trainer)
        self._module = pl_module
        loaded = self.take_pending()
        # Without a state of ours the count of the trainer is the best guess; it adds the optimizers up.
        self._steps = trainer.global_step // max(1, len(trainer.optimizers))
        if loaded:
            with taking(self.state_key, trainer):
                self._steps = int(loaded["steps"])
                (RunningSum if self.keep == "sum" else Window).check(loaded["window"])
        wanted = Path(self.directory or Path(trainer.log_dir or trainer.default_root_dir) / "merge").absolute()
        others = [callback._window for callback in callbacks_of(trainer, MergeCheckpoints)]
        taken = [other.folder for other in others if other is not None]
        common: dict[str, Any] = {"last": self.last, "state": loaded and loaded["window"]}
        common["folder"] = lambda: on_rank_zero(trainer, lambda: new_folder(wanted, taken))
        if trainer.fast_dev_run:
            self._writes = trainer.is_global_zero
            self._scratch = on_rank_zero(trainer, lambda: Path(mkdtemp(prefix="merge-")))
            common["folder"] = lambda: self._scratch
        if self.keep == "sum":
            common |= {"every_n_steps": self.every_n_steps, "start_step": self.start_step}
            self._window = RunningSum.begun(trainer, pl_module, self.method, **common)
        else:
            self._window = Window.begun(trainer, pl_module, self.method, **common)
        return self._window

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take a snapshot, if a step was taken that has one; here the raw weights stand in the module."""
        self._advance()

    def _advance(self) -> None:
        if self._window is None or self._optimizers is None:
            return
        before, taken = self._steps, self._optimizers.take()
        # Which steps a scaler will skip is not known beforehand, so where the last must be, they count.
        self._steps = self._module.global_step if self.keep == "sum" else before + taken
        if self._steps // self.every_n_steps == before // self.every_n_steps or self._steps < self.start_step:
            return
        if self.buffers == "recalibrate":
            self._norms = trained_norms(self._module)  # evaluation modes will hide which of them are frozen
        self._window.take(self._steps, self._optimizers.rates)
        self._optimizers.rates = {}

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Merge what there is, for those who evaluate it."""
        window = self._window
        if not (self._fitting and self.evaluate and window and window.steps) or trainer.sanity_checking:
            return
        if self._evaluated.steps != window.steps:
            self._evaluated = Evaluated(self._merge(trainer, window), window.steps)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Free what was only for the validation."""
        self._evaluated.free()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the merge."""
        if self._window is None and self.pending is None:
            return  # no training began
        window = self._window or self._begin(trainer, pl_module)  # nothing was left to train
        if isinstance(window, RunningSum) and not window.ended(self._steps):
            return
        if not window.steps:
            rank_zero_warn(
                f"MergeCheckpoints has no snapshot to merge: {self._steps} optimizer steps were taken, with "
                f"every_n_steps={self.every_n_steps} and start_step={self.start_step}."
            )
            return
        merged = self._merge(trainer, window)
        path = window.folder / "merged.ckpt"
        save_merged(trainer, pl_module, merged, path)
        if self._scratch is not None:
            return
        self.path = path
        rank_zero_info(f"The merge of the steps {window.steps} is in {path}")

    def _merge(self, trainer: Any, window: Window | RunningSum) -> dict[str, Tensor]:
        """The merge of the window, on every rank."""
        self._warned = self._warned or warn_if_varied(window.rates, window.steps)
        merged = on_rank_zero(trainer, window.merge)
        if self.buffers == "recalibrate":
            norms = self._norms or trained_norms(self._module)
            merged = recalibrated(trainer, self._module, merged, norms)
        return merged

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Take the hooks off; the snapshots stay."""
        if self._fitting:
            self._detach()
        super().release(trainer, pl_module)

    def _detach(self) -> None:
        if self._optimizers is not None:
            self._optimizers.remove()
            self._optimizers = None
        if isinstance(self._window, Window):
            self._window.close()
        if self._scratch is not None and self._writes:
            shutil.rmtree(self._scratch)
        self._scratch = None
        self._fitting = False

    # Checkpoints.

    @cached_property  # Lightning's profiler asks for it at every hook of every step
    def state_key(self) -> str:
        """Made of the settings, so that several callbacks keep their states apart."""
        settings = {"method": self.method, "last": self.last, "every_n_steps": self.every_n_steps}
        settings |= {"start_step": self.start_step, "buffers": self.buffers, "keep": self.keep}
        return re.sub(r" at 0x\w+", "", f"{_STATE}{settings!r}")  # the address of a function is another in each process

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and where the snapshots are."""
        if self._window is None:
            return dict(self.pending or {})
        self._advance()  # a callback before this one may save at the end of a batch
        return {"steps": self._steps, "window": self._window.state_dict()}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Warn where the checkpoint's snapshots are those of other settings."""
        keys = {str(key).removeprefix(CARRIED) for key in checkpoint.get("callbacks", {})}
        others = [key for key in keys if key.startswith(_STATE)]
        if self._fitting and others and self.state_key not in others:
            rank_zero_warn(
                f"The checkpoint holds snapshots of other settings, {others}: {self.state_key} begins anew with none."
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state when the training starts."""
        if self._fitting:
            super().load_state_dict(state_dict)
