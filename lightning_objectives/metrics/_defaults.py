"""Chooses the metrics of a model if the user names none."""

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score

from lightning_objectives.metrics._sets import SetCoverage, SetSize
from lightning_objectives.metrics.brier_score import BrierScore
from lightning_objectives.metrics.calibration_error import CalibrationError
from lightning_objectives.metrics.negative_log_likelihood import NegativeLogLikelihood
from lightning_objectives.metrics.top_k_accuracy import TopKAccuracy


def default_metrics(num_classes: int) -> MetricCollection:
    """Build the usual metrics of logits, under the keys that callbacks can monitor.

    Args:
        num_classes: C; above 5 there is ``top5`` as well. 1 means two classes in one column.

    Raises:
        ValueError: ``num_classes`` is not positive.

    >>> sorted(default_metrics(10))
    ['brier', 'ece', 'nll', 'top1', 'top5']
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be >= 1: give the number of columns of the logits.")
    metrics: dict[str, Metric] = {
        "ece": CalibrationError(),
        "nll": NegativeLogLikelihood(),
        "brier": BrierScore(),
        "top1": TopKAccuracy(),
    }
    if num_classes > 5:
        metrics["top5"] = TopKAccuracy(k=5)
    return MetricCollection(metrics)  # type: ignore[arg-type]  # its annotation has Metric | MetricCollection as values, and dict is invariant


class _R2(R2Score):
    """R2, which is NaN for fewer than two numbers, where torchmetrics raises an error."""

    def compute(self) -> Tensor:
        return super().compute() if self.total > 1 else torch.tensor(float("nan"), device=self.device)


def regression_metrics() -> MetricCollection:
    """Build the usual metrics of a regression, over all predicted numbers.

    >>> sorted(regression_metrics())
    ['mae', 'r2', 'rmse']
    """
    metrics: dict[str, Metric] = {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False), "r2": _R2()}
    return MetricCollection(metrics)  # type: ignore[arg-type]  # see above


def set_metrics() -> MetricCollection:
    """Build the usual metrics of prediction sets: the share of sets that hold the target, and their mean size.

    >>> metrics = set_metrics()
    >>> metrics.update(torch.tensor([[True, True, False], [False, True, False]]), torch.tensor([0, 0]))
    >>> metrics.compute()
    {'coverage': tensor(0.5000), 'size': tensor(1.5000)}
    """
    metrics: dict[str, Metric] = {"coverage": SetCoverage(), "size": SetSize()}
    return MetricCollection(metrics)  # type: ignore[arg-type]  # see above
