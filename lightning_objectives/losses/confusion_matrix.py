"""AnyLoss: a smooth form of a metric of the confusion matrix."""

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import shares, wide
from lightning_objectives.shapes import check_shapes

_LEAST = 1e-7
ConfusionMetric = Literal["accuracy", "f_beta", "g_mean", "balanced_accuracy"]


def confusion_matrix_loss(
    logits: Tensor, target: Tensor, *, metric: ConfusionMetric = "f_beta", beta: float = 1.0, slope: float = 73.0
) -> Tensor:
    r"""Compute one minus a metric of the confusion matrix of the batch, with predictions that are nearly 0 or 1.

    .. math::
        \hat y = \frac{1}{1 + e^{-L (p - 1/2)}}, \qquad TP = \sum_i y_i \hat y_i, \quad
        FN = \sum_i y_i (1 - \hat y_i), \quad FP = \sum_i (1 - y_i) \hat y_i, \quad
        TN = \sum_i (1 - y_i)(1 - \hat y_i)

    with p the sigmoid of the logit. The metric is that of each column, and the loss their mean.

    Args:
        logits: (N, C) one logit for each label, C of 1 for two classes. Computed in float32 or better.
        target: (N, C) float labels in [0, 1], or (N,) int classes, which are labels of one class.
        metric: ``"accuracy"``, :math:`(TP + TN) / N`; ``"f_beta"``,
            :math:`(1 + \beta^2) TP / ((1 + \beta^2) TP + \beta^2 FN + FP)`; ``"g_mean"``, the root of sensitivity
            times specificity; ``"balanced_accuracy"``, their mean.
        beta: :math:`\beta > 0`, how much recall counts beside precision.
        slope: :math:`L > 0`; small ones keep the probabilities nearly as they are, large ones round them.

    Returns:
        (N,) the loss of the batch for each row; a metric without any positive or negative sample counts as 1 there.

    Raises:
        ValueError: shapes that do not fit, an unknown metric, or a ``beta`` or ``slope`` that is not positive.

    Example:
        >>> p = torch.tensor([[0.5], [0.5]])
        >>> confusion_matrix_loss(p.logit(), torch.tensor([[1.0], [0.0]]))  # 1 - 2 · 0.5 / (1 + 0.5 + 0.5)
        tensor([0.5000, 0.5000])

    Paper: Han et al., AnyLoss: Transforming Classification Metrics into Loss Functions, KDD 2024, equations 3 and 4,
    https://arxiv.org/abs/2405.14745. Neither the slope of 73 nor the equations' numbers were checked at the source.
    """
    check_shapes(logits=logits, target=target)
    _check(metric, beta, slope)
    logits = wide(logits)
    y, predicted = shares(logits, target), (slope * (logits.sigmoid() - 0.5)).sigmoid()
    hits, false_alarms = (y * predicted).sum(0), ((1 - y) * predicted).sum(0)
    positives, negatives = y.sum(0), (1 - y).sum(0)
    sensitivity = _quotient(hits, positives)
    specificity = _quotient(negatives - false_alarms, negatives)
    if metric == "accuracy":
        value = (hits + negatives - false_alarms) / max(1, len(y))
    elif metric == "f_beta":
        value = _quotient((1 + beta**2) * hits, hits + false_alarms + beta**2 * positives)
    elif metric == "g_mean":  # The root has no finite slope at 0.
        value = (sensitivity * specificity).clamp_min(_LEAST).sqrt()
    else:
        value = (sensitivity + specificity) / 2
    return (1 - value).mean().expand(len(y))


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A ratio that is 1 where there is nothing to count."""
    empty = denominator == 0
    return torch.where(empty, 1.0, numerator / torch.where(empty, 1.0, denominator))


def _check(metric: str, beta: float, slope: float) -> None:
    if metric not in get_args(ConfusionMetric):
        raise ValueError(f"metric={metric!r} must be one of {', '.join(map(repr, get_args(ConfusionMetric)))}.")
    for name, value in {"beta": beta, "slope": slope}.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value} must be > 0 and finite.")


class ConfusionMatrixLoss(Loss):
    """Trains a binary classifier on the metric that it is judged by, such as the F1 score of rare positives (AnyLoss).

    The losses are those of :func:`confusion_matrix_loss`.

    Args:
        metric: ``"accuracy"``, ``"f_beta"``, ``"g_mean"`` or ``"balanced_accuracy"``.
        beta: of ``"f_beta"``, > 0.
        slope: > 0, how nearly probabilities are rounded; the paper's is 73.

    Raises:
        ValueError: an unknown metric, or a ``beta`` or ``slope`` that is not positive.

    When to use: two classes of different sizes, judged by one of these metrics, with batches that hold both. At the
    slope 73 the gradient nearly vanishes outside of probabilities of 0.4 to 0.6: begin with a smaller slope, or with a
    network that was trained by cross entropy.
    Cost: that of a sigmoid.
    Interactions: the metric is that of each batch, so large batches tell more; gradient accumulation does not join
    them. Weights of samples act on their mean alone, since all rows have one loss. The probabilities are not
    calibrated.

    Example:
        >>> ConfusionMatrixLoss(metric="balanced_accuracy", slope=10.0)
        ConfusionMatrixLoss(metric='balanced_accuracy', beta=1.0, slope=10.0)
    """

    function = staticmethod(confusion_matrix_loss)
    family = "class imbalance"
    problems = ("classes", "binary", "labels")
    coupled = "the confusion matrix is that of the batch"
    by_process = "each process has the confusion matrix of its own batch"

    def __init__(self, *, metric: ConfusionMetric = "f_beta", beta: float = 1.0, slope: float = 73.0) -> None:
        super().__init__()
        _check(metric, beta, slope)
        self.metric = metric
        self.beta = beta
        self.slope = slope

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N, C) labels or (N,) classes -> (N,) losses."""
        return confusion_matrix_loss(logits, target, metric=self.metric, beta=self.beta, slope=self.slope)
