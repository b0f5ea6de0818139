"""The callback of the merges."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_objectives._lightning import VERSION, rank_zero_info, rank_zero_warn
from lightning_objectives.averaging._recalibrate import recalibrate, trained_norms
from lightning_objectives.callbacks._optimizer_steps import OptimizerSteps, varied
from lightning_objectives.callbacks._training_pass import check_training_data, joint_pass
from lightning_objectives.callbacks._whole_state import copied, persistent, standing_in
from lightning_objectives.callbacks._window import Window
from lightning_objectives.callbacks.base import CARRIED, Callback, callbacks_of
from lightning_objectives.callbacks.ranks import on_rank_zero, refuse_flat_shards
from lightning_objectives.kinds import Merge
from lightning_objectives.merging._writing import replaced

_STATE = "MergeCheckpoints"
"""What the keys of the states begin with, those of subclasses too."""


class MergeCheckpoints(Callback):
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
        directory: where the files go; by default the folder ``merge`` in the logger's, or the trainer's, directory. A
            fit that begins anew takes a folder that is not there yet: ``merge-v1``, ``merge-v2``, ...

    Raises:
        ValueError: a setting outside its range; at setup: ``evaluate`` without a callback that logs it, or a strategy
            whose shards cannot be merged.

    Snapshots are safetensors files with all parameters and persistent buffers, frozen ones too: each can be loaded, and
    merged in other ways by ``lightning-objectives merge``. The last ones stay after the fit.

    Checkpoints: they tell which snapshots there are, and resuming goes on with them. A snapshot that has left the
    window is deleted once the two newest checkpoints can do without it; going on from an older one warns of what is
    lost.

    When to use: see the methods. Cost: a copy of the weights in the CPU's memory for each snapshot, at most three at a
    time; ``last`` files, and a few more; their merge in memory at the end. Interactions: the learning rate must be
    constant in the window, or a warning comes; a primary average stays what is validated and left in the module, and
    has no part in the merge.

    Example:
        >>> from lightning_objectives.merging import WSM
        >>> MergeCheckpoints(WSM(), last=4, every_n_steps=100, start_step=1000).path is None
        True
    """

    def __init__(
        self,
        method: Merge,
        *,
        last: int = 8,
        every_n_steps: int = 500,
        start_step: int = 0,
        evaluate: bool = False,
        buffers: Literal["average", "recalibrate"] = "average",
        directory: str | Path | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(method, Merge):
            raise ValueError(f"method={method!r} must be a merge, such as those of lightning_objectives.merging.")
        if last < 1:
            raise ValueError(f"last={last} must be >= 1.")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be >= 1.")
        if start_step < 0:
            raise ValueError(f"start_step={start_step} must be >= 0.")
        if buffers not in ("average", "recalibrate"):
            raise ValueError(f"buffers={buffers!r} must be 'average' or 'recalibrate'.")
        self.method = method
        self.last = last
        self.every_n_steps = every_n_steps
        self.start_step = start_step
        self.evaluate = evaluate
        self.buffers = buffers
        self.directory = directory
        self._clear()

    def _clear(self) -> None:
        self.path: Path | None = None
        """The merged checkpoint, after the fit."""
        self._window: Window | None = None
        self._optimizers: OptimizerSteps | None = None
        self._module: Any = None
        self._writes = False
        self._steps = 0
        self._norms: list[Any] = []
        self._merged: dict[str, Tensor] = {}
        """The newest merge that was evaluated, of the steps below."""
        self._merged_steps: list[int] = []
        self._placed: dict[str, Tensor] = {}
        """The same where the parameters are, during a validation."""
        self._loaded: Mapping[str, Any] | None = None
        self._fitting = False
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what another process gets, has the settings and begins anew.
        blank: dict[str, Any] = {
            "path": None,
            "_window": None,
            "_optimizers": None,
            "_module": None,
            "_norms": [],
            "_loaded": None,
        }
        return {**vars(self), **blank, "_merged": {}, "_placed": {}, "_merged_steps": [], "_fitting": False}

    # What is evaluated.

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the merge, the method's class in lower case, once there is one to evaluate."""
        return (type(self.method).__name__.lower(),) if self.evaluate and self._merged else ()

    def weights(self, name: str) -> dict[str, Tensor]:
        """The merge of the last validation, by name, in each parameter's (and floating buffer's) type and place.

        Meant for ``torch.func.functional_call``; the module is not touched. Never write to them.
        """
        if name not in self.names:
            raise ValueError(f"name={name!r} must be one of {list(self.names)}.")
        if not self._placed:
            live = persistent(self._module)
            self._placed = {
                key: value.to(live[key].device, live[key].dtype)
                for key, value in self._merged.items()
                if value.is_floating_point() or value.is_complex()
            }
        return self._placed

    # The run.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew for a fit; the other stages have nothing to merge."""
        if stage != "fit":
            self._fitting = False
            return
        self._detach()
        self._clear()
        self._fitting = True
        refuse_flat_shards(trainer, "MergeCheckpoints")
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
        self._optimizers = OptimizerSteps(trainer.optimizers)

    def _begin(self, trainer: Any, pl_module: Any) -> Window:
        if self.buffers == "recalibrate":
            check_training_data(trainer)
        self._module, self._writes = pl_module, trainer.is_global_zero
        # Without a state of ours the count of the trainer is the best guess; it adds the optimizers up.
        self._steps = trainer.global_step // max(1, len(trainer.optimizers))
        loaded, self._loaded = self._loaded, None
        default = Path(trainer.log_dir or trainer.default_root_dir) / "merge"
        window = Window(Path(self.directory or default).absolute(), last=self.last, writes=self._writes)
        if loaded is None:
            others = [callback._window for callback in callbacks_of(trainer, MergeCheckpoints)]
            taken = [other.folder for other in others if other is not None]
            window.folder = on_rank_zero(trainer, lambda: _new_folder(window.folder, taken))
        else:
            self._steps = loaded["steps"]
            missing = on_rank_zero(trainer, lambda: window.missing(loaded["window"]))
            window.load_state_dict(loaded["window"], missing=missing)
            if missing:
                rank_zero_warn(
                    f"{len(missing)} snapshots of the checkpoint are not there any more: {missing}. The merge goes on "
                    f"with those of the steps {window.steps}, and is made of fewer until {self.last} are there again."
                )
        self._window = window
        return window

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take a snapshot, if a step was taken that has one; here the raw weights stand in the module."""
        self._advance()

    def _advance(self) -> None:
        if self._window is None or self._optimizers is None:
            return
        before, self._steps = self._steps, self._steps + self._optimizers.take()
        if self._steps // self.every_n_steps == before // self.every_n_steps or self._steps < self.start_step:
            return
        if self.buffers == "recalibrate":
            self._norms = trained_norms(self._module)  # evaluation modes will hide which of them are frozen
        tensors = copied(self._module, keep=self._writes)
        self._window.add(self._steps, tensors, self._optimizers.rates)
        self._optimizers.rates = {}

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Merge what there is, for those who evaluate it."""
        window = self._window
        if not (self._fitting and self.evaluate and window and window.steps) or trainer.sanity_checking:
            return
        if self._merged_steps != window.steps:
            self._merged = self._merge(trainer, window)
            self._merged_steps = window.steps

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Free what was only for the validation."""
        self._placed = {}

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the merge."""
        if self._window is None and self._loaded is None:
            return  # no training began
        window = self._window or self._begin(trainer, pl_module)  # nothing was left to train
        if not window.steps:
            rank_zero_warn(
                f"MergeCheckpoints has no snapshot to merge: {self._steps} optimizer steps were taken, with "
                f"every_n_steps={self.every_n_steps} and start_step={self.start_step}."
            )
            return
        merged = self._merge(trainer, window)
        with standing_in(pl_module, merged):
            state = {key: _on_cpu(value) for key, value in pl_module.state_dict().items()}
        checkpoint = self._checkpoint(trainer, pl_module, state)
        path = window.folder / "merged.ckpt"
        on_rank_zero(trainer, lambda: _save(checkpoint, path))
        self.path = path
        rank_zero_info(f"The merge of the steps {window.steps} is in {path}")

    def _merge(self, trainer: Any, window: Window) -> dict[str, Tensor]:
        """The merge of the window, on every rank."""
        uneven = varied(window.rates)
        if uneven and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"The learning rate varied by more than 1 % between the snapshots {window.steps} that are merged: "
                f"{uneven} (least, greatest, by optimizer.group). A merge stands for a decay from a constant rate; "
                "where the rate decays as well, little is gained. Use a constant schedule, or a later start_step."
            )
        merged = on_rank_zero(trainer, lambda: window.merge(self.method))
        if self.buffers == "recalibrate":
            module, norms = self._module, self._norms or trained_norms(self._module)
            with standing_in(module, merged):
                recalibrate(module, norms, lambda: joint_pass(trainer, module, norms))
                found = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
                live = persistent(module).items()
                merged |= {name: tensor.to("cpu", copy=True) for name, tensor in live if id(tensor) in found}
        return merged

    def _checkpoint(self, trainer: Any, module: Any, state: dict[str, Any]) -> dict[str, Any]:
        """What Lightning writes with ``save_weights_only``, and what the module's own class adds to it."""
        checkpoint = {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "pytorch-lightning_version": VERSION,
            "state_dict": state,
        }
        if module.hparams:
            if getattr(module, "_hparams_name", None):
                checkpoint[module.CHECKPOINT_HYPER_PARAMS_NAME] = module._hparams_name
            checkpoint[module.CHECKPOINT_HYPER_PARAMS_KEY] = dict(module.hparams)
        # The class's: on this instance an average may stand in its way, to put itself into the checkpoint.
        type(module).on_save_checkpoint(module, checkpoint)
        return checkpoint

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the hooks off."""
        if stage == "fit":
            self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take the hooks off; the snapshots stay."""
        if self._fitting:
            self._detach()

    def _detach(self) -> None:
        if self._optimizers is not None:
            self._optimizers.remove()
            self._optimizers = None
        if self._window is not None:
            self._window.close()
        self._fitting = False

    # Checkpoints.

    @cached_property  # Lightning's profiler asks for it at every hook of every step
    def state_key(self) -> str:
        """Made of the settings, so that several callbacks keep their states apart."""
        settings = {"method": self.method, "last": self.last, "every_n_steps": self.every_n_steps}
        settings |= {"start_step": self.start_step, "buffers": self.buffers}
        return re.sub(r" at 0x\w+", "", f"{_STATE}{settings!r}")  # the address of a function is another in each process

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, and where the snapshots are."""
        if self._window is None:
            return dict(self._loaded or {})
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
        if self._fitting and state_dict:
            self._loaded = state_dict


def _new_folder(wanted: Path, taken: Sequence[Path]) -> Path:
    """Make a folder that was not there, or was empty, and return it."""
    folder, version = wanted, 0
    while folder in taken or (folder.exists() and any(folder.iterdir())):
        version += 1
        folder = wanted.with_name(f"{wanted.name}-v{version}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _on_cpu(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).to("cpu", copy=True)


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with replaced(path) as temporary:
        torch.save(checkpoint, temporary)
