"""Metrics of an unedited validation or test step."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_objectives._step.evaluation import NO_CHOICE, EvaluationSteps, Where
from lightning_objectives._trainer.callback import Callback, callbacks_of, numbered
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.callbacks.merge_checkpoints import MergeCheckpoints
from lightning_objectives.metrics import default_metrics

_GATHERED = {
    "fsdp2": "weights= repeats the forward pass with other weights than those that FSDP2 gathers; leave it out"
}


class Measured:
    """The metrics of one epoch, by name and data loader."""

    def __init__(self, metrics: Metric | MetricCollection | None) -> None:
        self.metrics = metrics
        self._found: dict[tuple[str, int], MetricCollection] = {}

    def update(self, name: str, loader: int, logits: Tensor, target: Tensor) -> None:
        """Take one batch; ``name`` stands before the metrics' own."""
        key = name, loader
        if key not in self._found:
            metrics = self.metrics or default_metrics(logits.shape[1] if logits.dim() > 1 else 1)
            metrics = metrics if isinstance(metrics, MetricCollection) else MetricCollection([metrics])
            self._found[key] = metrics.clone().to(logits.device)
        self._found[key].update(logits, target)

    def log(self, trainer: Any, module: Any, prefix: str) -> None:
        """Log everything, and begin anew."""
        several = len({loader for _, loader in self._found}) > 1
        for (name, loader), metrics in self._found.items():
            suffix = f"/dataloader_idx_{loader}" if several else ""
            for key, value in metrics.compute().items():
                # every rank has computed the same value, over the samples of all
                sync = trainer.world_size > 1
                module.log(f"{prefix}{name}{key}{suffix}", value, sync_dist=sync, add_dataloader_idx=False)
        self._found = {}


@dataclass(eq=False)
class LogMetrics(Callback):
    """Logs metrics of the logits and targets that the model's own validation or test step compares.

    They are what the step's criterion is given; where a step has no criterion, the head's output and the target in the
    batch. The keys are ``val/ece``, ``val/nll``, ``val/brier``, ``val/top1`` and, above five classes, ``val/top5``
    (``test/...`` when testing), of the weights that the step ran with: the primary average where there is one. With
    several data loaders they end in ``/dataloader_idx_0``, ``/dataloader_idx_1``, ..., as Lightning's own.

    Args:
        metrics: what to log; any torchmetrics metric or collection whose ``update`` takes ``(logits, target)``. By
            default :func:`~lightning_objectives.metrics.default_metrics` for as many classes as the logits have.
        prefix: what the keys begin with, before the stage.
        weights: other weights whose metrics are logged too, by one more forward pass of the network each: ``"raw"``
            under ``val/raw/...``, ``"average"`` for each average under its name (``val/ema/top1``, ``val/bema/top1``),
            and each merge that is evaluated under its (``val/wsm/top1``). Where names repeat, also among several
            callbacks, they are numbered in the callbacks' order (``val/ema_2/top1``).
        criterion: path of the model's criterion (``"loss_fn"``), where it is none of torch's functional losses.
        which: number of the criterion's call, from 0, where a step makes several.
        head: path of the network's head, where a step has no criterion and the head is not found.
        target: key or position of the target in the batch, where a step has no criterion; by default its last element.

    Raises:
        ValueError: the step gives nothing to measure, or no classification; the message says what to do.

    Example:
        >>> LogMetrics(weights=["raw", "average"]).weights
        ('raw', 'average')
    """

    leaves_training_alone = True

    metrics: Metric | MetricCollection | None = None
    _: KW_ONLY
    prefix: str = ""
    weights: Sequence[Literal["raw", "average"]] = ()
    criterion: str | None = None
    which: int | None = None
    head: str | None = None
    target: str | int | None = None

    def __post_init__(self) -> None:
        if not set(self.weights) <= {"raw", "average"}:
            raise ValueError(f"weights={self.weights!r} may hold 'raw' and 'average'.")
        self.weights = tuple(self.weights)
        self._steps: EvaluationSteps | None = None
        self._trainer: Any = None
        self._measured = Measured(self.metrics)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or what another process gets, has the settings and takes the steps of its own run.
        return {**vars(self), "_steps": None, "_trainer": None, "_measured": Measured(self.metrics)}

    @property
    def logged_weights(self) -> tuple[str, ...]:
        """The other weights that it logs; callbacks that offer weights ask for it by this name."""
        return tuple(self.weights)

    def unsupported(self) -> dict[str, str]:
        """What the default metrics cannot measure, and other weights that are not sharded as the module's are."""
        unmeasured = {"binary_cross_entropy": NO_CHOICE} if self.metrics is None else {}
        return super().unsupported() | unmeasured | (_GATHERED if self.weights else {})

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the evaluation steps."""
        super().setup(trainer, pl_module, stage)
        self._restore()
        self._trainer = trainer
        where = Where(criterion=self.criterion, which=self.which, head=self.head, target=self.target)
        otherwise = "say metrics=, any torchmetrics metric of (input, target)" if self.metrics is None else None
        repeat = bool(self.weights)
        self._steps = EvaluationSteps(pl_module, self._seen, where, otherwise=otherwise, repeat=repeat)

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the steps back."""
        self._restore()
        super().release(trainer, pl_module)

    def _restore(self) -> None:
        if self._steps is not None:
            self._steps.restore()
            self._steps = None

    def _seen(self, loader: int, logits: Tensor, target: Tensor) -> None:
        self._measured.update("", loader, logits, target)
        for name, weights in self._others():
            assert self._steps is not None  # it calls this
            self._measured.update(f"{name}/", loader, self._steps.repeated(weights, logits), target)

    def _others(self) -> list[tuple[str, dict[str, Tensor]]]:
        trainer = self._trainer
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking  # the averages begin with the training
        averages = callbacks_of(trainer, AverageWeights) if fitting else []
        found = []
        if averages and "raw" in self.weights:
            found.append(("raw", averages[0].weights("raw")))
        if "average" in self.weights:
            owners: list[Any] = [*averages, *(callbacks_of(trainer, MergeCheckpoints) if fitting else ())]
            for owner in owners:
                for name in owner.names:
                    found.append((numbered(name, [key for key, _ in found]), owner.weights(name)))
        return found

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to measure."""
        self._measured = Measured(self.metrics)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what was measured."""
        self._measured.log(trainer, pl_module, f"{self.prefix}val/")

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to measure."""
        self._measured = Measured(self.metrics)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what was measured."""
        self._measured.log(trainer, pl_module, f"{self.prefix}test/")
