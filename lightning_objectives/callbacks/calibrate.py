"""Calibrates the probabilities of a network, or fits prediction sets, at each validation."""

from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_objectives._step.calls import TARGETS
from lightning_objectives._step.compared import READ, Compared
from lightning_objectives._step.evaluation import EvaluationSteps, Where
from lightning_objectives._step.measured import Measured
from lightning_objectives._trainer.callback import StatefulCallback
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.random import mixed_seed
from lightning_objectives._trainer.ranks import gather_rows
from lightning_objectives.kinds import Fitted, SetPredictor
from lightning_objectives.metrics import classification_rows, default_metrics, set_metrics

_NOT_FITTED = (
    "has not been fitted, so there is nothing to test: run trainer.validate() before trainer.test(), or test with the "
    "ckpt_path of a training in which it took part."
)


@dataclass(eq=False)
class Calibrate(StatefulCallback):
    """Fits a calibrator or prediction sets at the end of each validation, in ``fit`` and in ``validate``.

    The method is fitted on the logits and targets that the model's own validation step compares, on all ranks; with
    several data loaders, on those of the first. The network and its outputs stay as they are. Call
    ``callback.calibrator(logits)`` to get calibrated probabilities, or (N, C) bool sets. The keys are
    ``val/calibrated/ece``, ``test/calibrated/nll``, ..., beside those of :class:`LogMetrics`; of prediction sets
    ``val/sets/coverage``, the share of sets that hold the target, and ``val/sets/size``, the mean number of classes.
    The values of a validation are a little too good, because they are measured on the samples that the method was
    fitted on; those of a test are not.

    Args:
        calibrator: the method: a calibrator or a set predictor.
        metrics: what to log; any torchmetrics metric or collection whose ``update`` takes ``(logits, target)``, or of
            prediction sets ``(sets, target)``. As logits it gets the logarithms of the calibrated probabilities.
        criterion: path of the model's criterion (``"loss_fn"``), if it is none of torch's functional losses.
        which: number of the criterion's call, from 0, if a step makes several.
        head: path of the network's head, if a step has no criterion and the head is not found.
        target: path of the target in the batch (``"1.labels"``), if a step has no criterion; by default the last
            element.
        seed: the seed of the draws of a set predictor. They leave the random stream of the training alone, and differ
            from validation to validation.

    Raises:
        ValueError: the step is no classification, or has nothing to fit on; a test comes before any fit; a set
            predictor gets soft targets.

    Checkpoints: the fitted values lie in this callback's state. A checkpoint that is written after a validation
    therefore holds the calibration of the weights that were validated.

    Cost: the logits of one validation, in the CPU's memory as float32. On a GPU each validation step waits for the
    device, because the logits of a whole validation are kept in the memory of the CPU, and because float targets of two
    classes show by their values alone whether they are classes.

    Example:
        >>> from lightning_objectives.calibration import TemperatureScaling
        >>> Calibrate(TemperatureScaling()).calibrator
        TemperatureScaling(min_temperature=0.01, max_temperature=100.0)
    """

    kind = Fitted
    waits: ClassVar = {
        "": {"_collect": "the logits of a whole validation are kept in the memory of the CPU"},
        "two_classes_on_a_gpu": {"_two_columns": READ},
    }
    leaves_training_alone = True
    refuses: ClassVar = {"binary_cross_entropy": TARGETS["labels"], "test_alone": _NOT_FITTED}

    calibrator: Fitted
    _: KW_ONLY
    metrics: Metric | MetricCollection | None = None
    criterion: str | None = None
    which: int | None = None
    head: str | None = None
    target: str | int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.fitted = False
        """Whether the calibrator was fitted, by a validation or in a checkpoint that was loaded."""
        self._steps: EvaluationSteps | None = None
        self._rows: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def methods(self) -> list[Any]:
        """The calibrator."""
        return [self.calibrator]

    def __getstate__(self) -> dict[str, Any]:
        # A copy keeps what is fitted, and patches the steps of its own run. Other processes get copies too.
        return {**vars(self), "_steps": None, "_rows": {}}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Patch the evaluation steps."""
        super().setup(trainer, pl_module, stage)
        self._restore()
        where = Where(criterion=self.criterion, which=self.which, head=self.head, target=self.target)
        self._steps = EvaluationSteps(pl_module, self._collect, where)

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Remove the patches."""
        self._restore()
        super().release(trainer, pl_module)

    def _restore(self) -> None:
        if self._steps is not None:
            self._steps.restore()
            self._steps = None
        self._rows = {}

    def _collect(self, loader: int, compared: Compared) -> None:
        if compared.problem not in ("classes", "binary"):
            raise ValueError(
                f"Calibrate({self.calibrator}) needs one class of several for each row, but the evaluation step "
                f"compares {tuple(compared.input.shape)} with {tuple(compared.target.shape)} ({compared.source}): "
                f"{TARGETS[compared.problem]}. Remove Calibrate, or name the criterion that compares logits with "
                "classes by criterion= or which=."
            )
        rows = classification_rows(*compared.pair, from_logits=True)
        if isinstance(self.calibrator, SetPredictor) and rows.target.is_floating_point():
            raise ValueError(
                f"Calibrate({self.calibrator}) needs one class for each row, but the evaluation step compares with "
                f"probabilities, {tuple(rows.target.shape)}: a set holds a class or does not. Compare with classes in "
                "the evaluation step, or remove Calibrate."
            )
        kept = rows.preds[rows.kept].cpu(), rows.target[rows.kept].cpu()
        self._rows.setdefault(loader, []).append(kept)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to collect."""
        self._rows = {}

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Fit, and log the metrics of the calibrated probabilities."""
        if trainer.sanity_checking:
            return
        if not self._rows:
            if self._steps is not None:
                self._steps.check_something()
            return
        mine = [torch.cat(part).to(pl_module.device) for part in zip(*self._rows[min(self._rows)])]
        (logits, target), _ = gather_rows(mine)
        # Lightning validates in inference mode or without gradients, but a calibrator may be trained to fit.
        with torch.inference_mode(False), torch.enable_grad():
            self.calibrator.fit(logits.clone().cpu(), target.clone().cpu(), **self._draws(trainer.global_step))
        self.fitted = True
        self._log(trainer, pl_module, "val/")

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to collect."""
        if not self.fitted:
            raise ValueError(f"Calibrate({self.calibrator}) {_NOT_FITTED}")
        self._rows = {}

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the metrics of the calibrated probabilities."""
        self._log(trainer, pl_module, "test/")

    def _draws(self, *numbers: int) -> dict[str, torch.Generator]:
        """A generator by name for a method that may draw; nothing for others."""
        sets = isinstance(self.calibrator, SetPredictor)
        return {"generator": torch.Generator().manual_seed(mixed_seed(self.seed, *numbers))} if sets else {}

    def _log(self, trainer: Any, module: Any, stage: str) -> None:
        measured, sets = Measured(self.metrics), isinstance(self.calibrator, SetPredictor)
        for loader, batches in self._rows.items():
            draws = self._draws(trainer.global_step, 1 + loader, trainer.global_rank)
            for logits, target in batches:
                result = self.calibrator(logits, **draws)
                if not sets:
                    result = result.clamp_min(torch.finfo(result.dtype).tiny).log()
                build = partial(self._metrics, result.shape[1])
                measured.update_rows("", loader, result.to(module.device), target.to(module.device), build)
        measured.log(trainer, module, f"{stage}{'sets' if sets else 'calibrated'}/")
        self._rows = {}

    def _metrics(self, classes: int) -> Metric | MetricCollection:
        if self.metrics is not None:
            return self.metrics
        return set_metrics() if isinstance(self.calibrator, SetPredictor) else default_metrics(classes)

    @cached_property  # Lightning's profiler asks for it at every hook of every step
    def state_key(self) -> str:
        """One entry in the checkpoint for each calibrator."""
        return f"{type(self).__name__}({self.calibrator!r})"

    def state_dict(self) -> dict[str, Any]:
        """The fitted values; empty before the first fit."""
        return dict(self.calibrator.state_dict()) if self.fitted else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the fitted values."""
        with taking(self.state_key, self._steps and self._steps.module.trainer):
            self.calibrator.load_state_dict(state_dict)
        self.fitted = True
