"""Measures what an unedited validation or test step compares."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_objectives._files.network import load_network
from lightning_objectives._step.asking import asked
from lightning_objectives._step.calls import TARGETS
from lightning_objectives._step.compared import READ, Compared
from lightning_objectives._step.evaluation import EvaluationSteps, Where
from lightning_objectives._step.measured import Measured
from lightning_objectives._step.shown import Shown
from lightning_objectives._step.shown_teacher import ShownTeacher
from lightning_objectives._trainer.callback import Callback
from lightning_objectives._trainer.carried import callbacks_of
from lightning_objectives._trainer.configured import check_trained
from lightning_objectives._trainer.names import numbered
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.callbacks.merge_checkpoints import MergeCheckpoints

_GATHERED = {
    "fsdp2": "weights= repeats the forward pass with other weights than those that FSDP2 gathers; leave it out"
}
"""Why other weights cannot be measured when the module's own are sharded."""
_OF_TEACHER = ("teacher", "teacher_weights", "teacher_head", "teacher_call")


@dataclass(eq=False)
class LogMetrics(Callback):
    """Logs metrics of the predictions and targets that the model's own validation or test step compares.

    These are the arguments of the step's criterion. If a step has no criterion, they are the head's output and the
    target in the batch. For classes the keys are ``val/ece``, ``val/nll``, ``val/brier``, ``val/top1`` and, above five
    classes, ``val/top5``; for a regression ``val/mae``, ``val/rmse`` and ``val/r2`` (``test/...`` when testing).
    Targets that the criterion ignores do not count. Batches without a target are left out. The values belong to the
    weights that the step runs with, which are those of the primary average if there is one. With several data loaders
    the keys end in ``/dataloader_idx_0``, ``/dataloader_idx_1``, ..., like Lightning's own.

    A metric may also ask for what it needs, as a method does: if the ``update`` of a metric names ``features`` (the
    input of the head), ``teacher_features`` (that of ``teacher``), ``head``, ``group`` or ``loader`` (the number of the
    data loader of each row), or takes one value, it gets what it names, ``logits`` (or ``preds``) and ``target``
    included. All values have one row for each sample, or for each position of a sample, and logits of one column get
    two, (0, z). Such a metric measures batches without a target too, if it does not ask for the target. One that asks
    for ``loader`` measures all loaders together:

    >>> from lightning_objectives.metrics import OODDetection
    >>> callback = LogMetrics(OODDetection())  # trainer.validate(model, [usual, other]) logs val/ood_auroc

    Args:
        metrics: what to log; any torchmetrics metric or collection whose ``update`` takes ``(logits, target)``, or
            names what it needs. By default :func:`~lightning_objectives.metrics.default_metrics` for as many classes as
            the logits have, or :func:`~lightning_objectives.metrics.regression_metrics`.
        prefix: what the keys begin with, before the stage.
        weights: other weights to measure too; each costs one more forward pass of the network. ``"raw"`` logs the raw
            weights under ``val/raw/...``. ``"average"`` logs each average under its name (``val/ema/top1``,
            ``val/bema/top1``), and each merge with ``evaluate=True`` (``val/wsm/top1``). Names that repeat, also among
            several callbacks, are numbered in the order of the callbacks (``val/ema_2/top1``). Not for metrics that ask
            for what they need.
        criterion: path of the model's criterion (``"loss_fn"``), if it is none of torch's functional losses.
        which: number of the criterion's call, from 0, if a step makes several.
        head: path of the network's head, if a step has no criterion and the head is not found.
        target: path of the target in the batch (``"1.labels"``), if a step has no criterion; by default the last
            element.
        teacher: another trained network, for a metric that asks for ``teacher_features``: a module, a timm name, or the
            path of a class or of a function that returns it. It is copied, never changes, and is called as the step
            calls its network. A copy of the network from before the training shows how far the features move.
        teacher_weights: a file of its weights.
        teacher_head: path of its head, if it is not found.
        teacher_call: how to call it, if it takes something else: a function ``(teacher, batch) -> output``.

    On a GPU a step waits for the device if float targets are compared with one logit, because float targets of two
    classes show by their values alone whether they are classes, and if you say ``metrics=`` and targets can be ignored.

    Raises:
        ValueError: the step compares several labels or something unknown and you name no metrics, a metric asks for
            something that is not there, or there is nothing to measure; the message says what to do.

    Example:
        >>> LogMetrics(weights=["raw", "average"]).weights
        ('raw', 'average')
    """

    leaves_training_alone = True
    waits: ClassVar = {"two_classes_on_a_gpu": {"_two_columns": READ}}

    metrics: Metric | MetricCollection | None = None
    _: KW_ONLY
    prefix: str = ""
    weights: Sequence[Literal["raw", "average"]] = ()
    criterion: str | None = None
    which: int | None = None
    head: str | None = None
    target: str | int | None = None
    teacher: str | nn.Module | None = None
    teacher_weights: str | None = None
    teacher_head: str | None = None
    teacher_call: Callable[[nn.Module, Any], Any] | None = None

    def __post_init__(self) -> None:
        if not set(self.weights) <= {"raw", "average"}:
            raise ValueError(f"weights={self.weights!r} may hold only 'raw' and 'average'.")
        self.weights = tuple(self.weights)
        self._steps: EvaluationSteps | None = None
        self._trainer: Any = None
        self._measured = Measured(self.metrics)
        if self.weights and self._measured.asking:
            names = ", ".join(map(str, self._measured.asking.keys(keep_base=True)))
            raise ValueError(
                f"weights={self.weights!r} measures predictions and targets alone, but {names} asks for other values: "
                "give it to a LogMetrics of its own, without weights."
            )
        self._check_teacher()

    def _check_teacher(self) -> None:
        members = self._measured.asking.items(keep_base=True)
        asking = [str(name) for name, metric in members if "teacher_features" in asked(metric)]
        if asking and self.teacher is None:
            raise ValueError(f"{asking[0]} asks for the features of a teacher: say teacher= and the network.")
        told = [name for name in _OF_TEACHER if getattr(self, name) is not None]
        if told and not asking:
            raise ValueError(f"{told[0]}= is for a metric that asks for teacher_features, but none does: leave it out.")
        check_trained(self, "teacher")

    def __getstate__(self) -> dict[str, Any]:
        # A copy keeps the settings, and patches the steps of its own run. Other processes get copies too.
        return {**vars(self), "_steps": None, "_trainer": None, "_measured": Measured(self.metrics)}

    @property
    def logged_weights(self) -> tuple[str, ...]:
        """The other weights that it logs; callbacks that offer weights ask for it by this name."""
        return tuple(self.weights)

    def unsupported(self) -> dict[str, str]:
        """Refuse what the default metrics cannot measure, and other weights if the module's own are sharded."""
        unmeasured = {"binary_cross_entropy": TARGETS["labels"]} if self.metrics is None else {}
        return super().unsupported() | unmeasured | (_GATHERED if self.weights else {})

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Patch the evaluation steps."""
        super().setup(trainer, pl_module, stage)
        self._restore()
        self._trainer = trainer
        where = Where(criterion=self.criterion, which=self.which, head=self.head, target=self.target)
        on_step = self._measure_asking if self._measured.asking else None
        teacher = None
        if self.teacher is not None:
            network = load_network(self.teacher, self.teacher_weights)
            teacher = ShownTeacher(network, head=self.teacher_head, call=self.teacher_call)
        self._steps = EvaluationSteps(
            pl_module, self._measure, where, repeat=bool(self.weights), on_step=on_step, teacher=teacher
        )

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Remove the patches."""
        self._restore()
        super().release(trainer, pl_module)

    def _restore(self) -> None:
        if self._steps is not None:
            self._steps.restore()
            self._steps = None

    def _measure(self, loader: int, compared: Compared) -> None:
        self._measured.update("", loader, compared)
        for name, weights in self._other_weights():
            assert self._steps is not None  # they call this method
            self._measured.update(f"{name}/", loader, self._steps.repeated(weights, compared))

    def _measure_asking(self, shown: Shown) -> None:
        self._measured.update_asking(shown)

    def _other_weights(self) -> list[tuple[str, dict[str, Tensor]]]:
        trainer = self._trainer
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return []  # The averages begin with the training.
        averages = callbacks_of(trainer, AverageWeights)
        others: list[tuple[str, dict[str, Tensor]]] = []
        if averages and "raw" in self.weights:
            others.append(("raw", averages[0].weights("raw")))
        if "average" in self.weights:
            owners: list[Any] = [*averages, *callbacks_of(trainer, MergeCheckpoints)]
            for owner in owners:
                for name in owner.names:
                    others.append((numbered(name, [key for key, _ in others]), owner.weights(name)))
        return others

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to measure."""
        self._measured = Measured(self.metrics)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what was measured."""
        self._log(trainer, pl_module, "val/")

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to measure."""
        self._measured = Measured(self.metrics)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what was measured."""
        self._log(trainer, pl_module, "test/")

    def _log(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._steps is not None and not self._measured:
            self._steps.check_something()
        self._measured.log(trainer, pl_module, f"{self.prefix}{stage}")
