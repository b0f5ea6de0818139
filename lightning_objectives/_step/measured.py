"""Measures the batches of an evaluation epoch by metrics, and logs the results at its end."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_objectives._step.asking import asked, collection_like, split
from lightning_objectives._step.calls import TARGETS
from lightning_objectives._step.compared import Compared
from lightning_objectives._step.shown import Shown
from lightning_objectives.metrics import default_metrics, regression_metrics

Build = Callable[[], Metric | MetricCollection]


class Measured:
    """Holds the metrics of one epoch, by the name of the weights and by data loader.

    Args:
        metrics: what to measure; by default :func:`default_metrics` for as many classes as the logits have, and
            :func:`regression_metrics` for a regression.

    Raises:
        ValueError: a metric asks for something that no evaluation step has.
    """

    def __init__(self, metrics: Metric | MetricCollection | None) -> None:
        self.metrics, self.asking = split(metrics)
        self.by_default = metrics is None
        self._collections: dict[tuple[str, int], MetricCollection] = {}
        self._asking: dict[int | None, dict[str, Metric]] = {}
        """The metrics that ask for values by name, by data loader; under None those that ask for the loader."""
        self._steps = 0

    def update(self, name: str, loader: int, compared: Compared) -> None:
        """Measure one batch; ``name`` stands before the names of the metrics.

        Raises:
            ValueError: the user names no metrics, and there are none for this kind of problem.
        """
        if self.metrics is not None:
            own = self.metrics
            self.update_rows(name, loader, *compared.plain, lambda: own)
        elif self.by_default:
            build = _default(compared)
            preds, target = compared.pair
            if compared.problem == "regression":
                preds, target = preds.flatten(), target.expand_as(preds).flatten()
            self.update_rows(name, loader, preds, target, build)

    def update_asking(self, shown: Shown) -> None:
        """Measure one batch by the metrics that ask for values by name.

        Raises:
            ValueError: something that a metric asks for is not there.
        """
        self._steps += 1
        for name, metric in self.asking.items(keep_base=True):
            names = asked(metric)
            values = shown.values(name, names)
            if values is not None:
                metrics = self._asking.setdefault(None if "loader" in names else shown.loader, {})
                if name not in metrics:
                    device = next(value.device for value in values.values() if isinstance(value, Tensor))
                    metrics[name] = metric.clone().to(device)
                metrics[name].update(**values)

    def update_rows(self, name: str, loader: int, preds: Tensor, target: Tensor, build: Build) -> None:
        """Measure predictions and targets as they are, from the first batch on by the metrics that it builds."""
        key = name, loader
        if key not in self._collections:
            metrics = build()
            collection = metrics if isinstance(metrics, MetricCollection) else MetricCollection([metrics])
            if metrics is self.metrics:
                collection = collection.clone()  # the user's own stay as they are
            self._collections[key] = collection.to(preds.device)
        if len(target):
            self._collections[key].update(preds, target)

    def __bool__(self) -> bool:
        """Whether anything was measured."""
        return bool(self._collections or self._asking)

    def log(self, trainer: Any, module: Any, prefix: str) -> None:
        """Log everything, and begin anew."""
        for name, metric in self.asking.items(keep_base=True):
            if self._steps and not any(name in metrics for metrics in self._asking.values()):
                names = ", ".join(asked(metric))
                raise ValueError(
                    f"{name} has measured nothing: none of {self._steps} evaluation steps had {names} together. Remove "
                    "it, or compute them in the step."
                )
        pairs = [(name, loader, metrics) for (name, loader), metrics in self._collections.items()]
        asking = [("", loader, collection_like(self.asking, metrics)) for loader, metrics in self._asking.items()]
        self._log(trainer, module, prefix, pairs)
        self._log(trainer, module, prefix, asking)
        self._collections, self._asking, self._steps = {}, {}, 0

    @staticmethod
    def _log(
        trainer: Any, module: Any, prefix: str, groups: Sequence[tuple[str, int | None, MetricCollection]]
    ) -> None:
        several = len({loader for _, loader, _ in groups if loader is not None}) > 1
        # Every rank computes the same value over the samples of all ranks, so the mean over the ranks changes nothing;
        # Lightning warns without it.
        sync = trainer.world_size > 1
        for name, loader, metrics in groups:
            suffix = f"/dataloader_idx_{loader}" if several and loader is not None else ""
            for key, value in metrics.compute().items():
                module.log(f"{prefix}{name}{key}{suffix}", value, sync_dist=sync, add_dataloader_idx=False)


def _default(compared: Compared) -> Build:
    """What builds the metrics of a problem."""
    if compared.problem == "regression":
        return regression_metrics
    if compared.problem in ("classes", "binary"):
        return partial(default_metrics, max(2, compared.columns))
    raise ValueError(
        f"The evaluation step compares {tuple(compared.input.shape)} with {tuple(compared.target.shape)} "
        f"({compared.source}): {TARGETS[compared.problem]}, for which there are no default metrics. Say metrics=, "
        "any torchmetrics metric of (predictions, target), such as torchmetrics.MeanAbsoluteError() for a regression."
    )
