"""The callback of the calibrators."""

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_objectives._step.evaluation import NO_CHOICE, EvaluationSteps, Where
from lightning_objectives._trainer.callback import StatefulCallback
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.ranks import gather_rows
from lightning_objectives.callbacks.log_metrics import Measured
from lightning_objectives.kinds import Calibrator
from lightning_objectives.metrics import classification_rows

_NOT_FITTED = (
    "has not been fitted: run trainer.validate() before trainer.test(), or test with the ckpt_path of a training in "
    "which it took part."
)


@dataclass(eq=False)
class Calibrate(StatefulCallback):
    """Fits a calibrator at the end of each validation, of ``fit`` and of ``validate``, and measures what it mends.

    It is fitted on the logits and targets that the model's own validation step compares, found as ``LogMetrics`` finds
    them, of all ranks; with several data loaders, on those of the first. The network is not touched: its outputs stay
    what they are, and ``callback.calibrator(logits)`` gives the calibrated probabilities. The keys are
    ``val/calibrated/ece``, ``test/calibrated/nll``, ..., beside those of ``LogMetrics``. In the validation they are
    measured on the samples that it was fitted on, hence a little too good; those of the test are not.

    Args:
        calibrator: the method.
        metrics: what to log; any torchmetrics metric or collection whose ``update`` takes ``(logits, target)``. It is
            given the logarithms of the probabilities, which are logits of them.
        criterion: path of the model's criterion (``"loss_fn"``), where it is none of torch's functional losses.
        which: number of the criterion's call, from 0, where a step makes several.
        head: path of the network's head, where a step has no criterion and the head is not found.
        target: key or position of the target in the batch, where a step has no criterion; by default its last element.

    Raises:
        ValueError: the step is no classification, or gives nothing to fit on; a test without a fit.

    Checkpoints: what is fitted lies in this callback's state, so that each checkpoint that is written after a
    validation holds the calibration of the weights that were validated.

    Cost: the logits of a validation in memory, float32, on the CPU.

    Example:
        >>> from lightning_objectives.calibration import TemperatureScaling
        >>> Calibrate(TemperatureScaling()).calibrator
        TemperatureScaling(min_temperature=0.01, max_temperature=100.0)
    """

    kind = Calibrator
    leaves_training_alone = True
    refuses: ClassVar = {"binary_cross_entropy": NO_CHOICE, "test_alone": _NOT_FITTED}

    calibrator: Calibrator
    _: KW_ONLY
    metrics: Metric | MetricCollection | None = None
    criterion: str | None = None
    which: int | None = None
    head: str | None = None
    target: str | int | None = None

    def __post_init__(self) -> None:
        self.fitted = False
        """Whether a validation, or a checkpoint, has fitted it."""
        self._steps: EvaluationSteps | None = None
        self._rows: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def methods(self) -> list[Any]:
        """The one method."""
        return [self.calibrator]

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what another process gets, has what is fitted, and takes the steps of its own run.
        return {**vars(self), "_steps": None, "_rows": {}}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the evaluation steps."""
        super().setup(trainer, pl_module, stage)
        self._restore()
        where = Where(criterion=self.criterion, which=self.which, head=self.head, target=self.target)
        otherwise = "a calibrator needs logits of classes and a class a row"
        self._steps = EvaluationSteps(pl_module, self._seen, where, otherwise=otherwise)

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the steps back."""
        self._restore()
        super().release(trainer, pl_module)

    def _restore(self) -> None:
        if self._steps is not None:
            self._steps.restore()
            self._steps = None
        self._rows = {}

    def _seen(self, loader: int, logits: Tensor, target: Tensor) -> None:
        ignored = None if self._steps is None else self._steps.ignore_index
        rows = classification_rows(logits, target, from_logits=True, ignore_index=ignored)
        kept = rows.preds[rows.kept].cpu(), rows.target[rows.kept].cpu()
        self._rows.setdefault(loader, []).append(kept)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to collect."""
        self._rows = {}

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Fit, and log what is calibrated."""
        if trainer.sanity_checking or not self._rows:
            return
        mine = [torch.cat(part).to(pl_module.device) for part in zip(*self._rows[min(self._rows)])]
        (logits, target), _ = gather_rows(mine)
        # `validate` runs in inference mode, and `fit` validates without gradients; a calibrator may train
        with torch.inference_mode(False), torch.enable_grad():
            self.calibrator.fit(logits.clone().cpu(), target.clone().cpu())
        self.fitted = True
        self._log(trainer, pl_module, "val/calibrated/")

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to collect."""
        if not self.fitted:
            raise ValueError(f"Calibrate({self.calibrator}) {_NOT_FITTED}")
        self._rows = {}

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what is calibrated."""
        self._log(trainer, pl_module, "test/calibrated/")

    def _log(self, trainer: Any, module: Any, prefix: str) -> None:
        measured = Measured(self.metrics)
        for loader, batches in self._rows.items():
            for logits, target in batches:
                p = self.calibrator(logits)
                logs = p.clamp_min(torch.finfo(p.dtype).tiny).log()
                measured.update("", loader, logs.to(module.device), target.to(module.device))
        measured.log(trainer, module, prefix)
        self._rows = {}

    @cached_property  # Lightning's profiler asks for it at every hook of every step
    def state_key(self) -> str:
        """One entry in the checkpoint for each calibrator."""
        return f"{type(self).__name__}({self.calibrator!r})"

    def state_dict(self) -> dict[str, Any]:
        """What is fitted."""
        return dict(self.calibrator.state_dict()) if self.fitted else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        with taking(self.state_key, self._steps and self._steps.module.trainer):
            self.calibrator.load_state_dict(state_dict)
        self.fitted = True
