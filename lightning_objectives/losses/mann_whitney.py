"""Mann-Whitney loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import shares, wide
from lightning_objectives.shapes import check_shapes


def mann_whitney_loss(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Compute the binary cross entropy of score differences between the positive and the negative samples.

    .. math::
        \frac{1}{N} \sum_i \ell_i = \frac{1}{|P| |Q|} \sum_{i \in P} \sum_{j \in Q}
        \log\left(1 + e^{-(s_i - s_j) / \tau}\right) \ge \log 2 \cdot (1 - \mathrm{AUC})

    with :math:`P` and :math:`Q` the positive and negative samples of the batch. Each pair counts half for each of its
    two samples. With several columns it is the mean over those that have positive and negative samples.

    Args:
        logits: (N, C), the scores of C labels, in any float type; computed in float32 or better.
        target: (N, C) float labels in [0, 1], or (N,) int classes, which are labels of one class. Labels between 0
            and 1 are shares of a positive and of a negative sample.
        temperature: :math:`\tau > 0`.

    Returns:
        (N,) losses, whose mean is that of the pairs; 0 if no label has positive and negative samples.

    Raises:
        ValueError: shapes that do not fit, or a ``temperature`` that is not positive.

    Example:
        >>> import torch
        >>> scores, labels = torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.0]])
        >>> mann_whitney_loss(scores, labels)  # log(1 + e^-1)
        tensor([0.3133, 0.3133])

    Paper: Optimizing What Matters: AUC-Driven Learning for Robust Neural Retrieval, 2025,
    https://arxiv.org/abs/2510.00137.

    Differs from the paper: several labels are our extension. All pairs of the batch count; whether the paper pairs
    across queries, we did not check.
    """
    _check(temperature)
    check_shapes(logits=logits, target=target)
    scores = wide(logits) / temperature
    positive = shares(scores, target)
    negative = 1 - positive
    pairs = F.softplus(scores[None] - scores[:, None])  # (positive, negative, C)
    weighted = positive[:, None] * negative[None] * pairs
    number = positive.sum(0) * negative.sum(0)
    known = number > 0
    # Both sums run over the rows of the batch, so they are one value for each row and label.
    of_rows = (weighted.sum(1) + weighted.sum(0)) * (len(logits) / 2) / torch.where(known, number, 1.0)
    return torch.where(known, of_rows, 0.0).sum(1) / known.sum().clamp_min(1)


def _check(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be > 0 and finite.")


class MannWhitneyLoss(Loss):
    r"""Trains scores that rank every positive sample above every negative one, as the area under the ROC curve asks.

    The losses are those of :func:`mann_whitney_loss`.

    Args:
        temperature: :math:`\tau`; below 1 for scores that are cosines.

    Raises:
        ValueError: a ``temperature`` that is not positive.

    When to use: two classes of very different sizes, judged by the AUC, with batches that hold both. A batch of one
    class teaches nothing.
    Cost: all pairs of a batch: time and memory of N · N · C.
    Interactions: only differences of scores count, so the scores have no threshold of their own: choose it on
    validation data, or calibrate. Weights of samples act on each sample's half of its pairs. Gradient accumulation
    does not join the batches. The criterion's ``weight`` and ``pos_weight`` are lost.

    Example:
        >>> import torch
        >>> MannWhitneyLoss()(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]))
        tensor([0.6931, 0.6931])
    """

    function = staticmethod(mann_whitney_loss)
    family = "class imbalance"
    problems = ("classes", "binary", "labels")
    coupled = "it compares the samples of the batch with each other"
    by_process = "each process compares the samples of its own batch"

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        _check(temperature)
        self.temperature = temperature

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) scores and (N, C) labels or (N,) classes -> (N,) losses."""
        return mann_whitney_loss(logits, target, temperature=self.temperature)
