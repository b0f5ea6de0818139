"""Progressive purification of sets of candidate labels."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss, Row
from lightning_objectives.losses._targets import expected, log_probabilities, shares, wide
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"candidates": forms("(N, C)"), "averages": forms("(N, C) float")}


def candidate_weights(logits: Tensor, candidates: Tensor) -> Tensor:
    r"""Compute how the network divides its belief among the candidates of each sample.

    .. math::
        w_k = \frac{s_k p_k}{\sum_j s_j p_j}

    with s 1 for candidates and 0 for other classes, and p the softmax.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        candidates: (N, C) above 0, or true, for candidates.

    Returns:
        (N, C) weights without gradient, above 0 for each candidate, however improbable. A row sums to 1; without any
        candidate it is all 0.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> candidate_weights(torch.tensor([[0.6, 0.2, 0.2]]).log(), torch.tensor([[True, True, False]]))
        tensor([[0.7500, 0.2500, 0.0000]])
    """
    check_shapes(_FORMS, logits=logits, candidates=candidates)
    logits, inside = wide(logits.detach()), candidates > 0
    limits = torch.finfo(logits.dtype)
    # The softmax of a row of -inf is NaN; a candidate of -inf must still come before the other classes.
    weights = logits.clamp_min(limits.min / 2).masked_fill(~inside, limits.min).softmax(1)
    return torch.where(inside, weights.clamp_min(limits.tiny), 0.0)


def purified_weights(averages: Tensor, *, threshold: float = 1e-3) -> Tensor:
    r"""Drop the candidates that the network has believed in far less than in the best one, and divide anew.

    .. math::
        w_k = \frac{a_k [a_k \ge \theta \max_j a_j]}{\sum_i a_i [a_i \ge \theta \max_j a_j]}

    Args:
        averages: (N, C) sums or averages a of the weights of the candidates over some epochs; 0 for other classes.
        threshold: :math:`\theta`, in [0, 1]; 0 drops none, and 1 all but the best.

    Returns:
        (N, C) weights. The best candidate always stays.

    Raises:
        ValueError: another shape, or a threshold outside of [0, 1].

    Example:
        >>> purified_weights(torch.tensor([[0.6, 0.399, 0.001]]), threshold=0.1)
        tensor([[0.6006, 0.3994, 0.0000]])
    """
    _check(threshold)
    check_shapes(_FORMS, averages=averages)
    kept = torch.where(averages >= threshold * averages.amax(1, keepdim=True), averages, 0.0)
    return kept / kept.sum(1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)


def _check(threshold: float, warmup_epochs: int = 0, period: int = 1) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must be in [0, 1]; 0 drops no candidate, and 1 all but the best.")
    if not 0 <= warmup_epochs < math.inf:
        raise ValueError(f"warmup_epochs={warmup_epochs} must be >= 0: the epochs before the first purification.")
    if not (1 <= period < math.inf and period == int(period)):
        raise ValueError(f"period={period} must be a whole number of epochs, 1 or more.")


class ProgressivePurification(Loss):
    r"""Learns from sets of candidate labels with one right label each, and drops improbable candidates step by step.

    The loss is the cross entropy with weights of the candidates, which begin equal: :math:`-\sum_k w_k \log p_k`. After
    each step a sample's weights become those of :func:`candidate_weights`. After every ``period`` epochs they are those
    of :func:`purified_weights`, by the sums over these epochs, and what is dropped stays so.

    Args:
        threshold: :math:`\theta`, in [0, 1]: a candidate is dropped if its weight is below this part of the best one's.
        warmup_epochs: the epochs before the first purification.
        period: every how many epochs the candidates are purified.

    Raises:
        ValueError: a setting outside its range.

    When to use: partial labels: several annotators, web tags or a weak model name candidates for each sample, and just
    one is right. Pass the candidates as the target of your cross entropy, (N, C) floats that are above 0 for
    candidates: ``F.cross_entropy(logits, candidates / candidates.sum(1, keepdim=True))``.
    Cost: 2 C + 1 numbers in float32 for each sample of the data set, on the device and in each checkpoint: 40 MB for
    50,000 samples of 100 classes.
    Interactions: wrap the data set with ``with_index``. Each sample must be one row. Not with mixed samples. The values
    of the target mean nothing beyond being above 0. A sample without a candidate teaches nothing. With one candidate
    for each sample it is cross entropy.

    Example:
        >>> memory = {name: torch.zeros(1, 3) for name in ("weights", "sums")} | {"period": torch.zeros(1)}
        >>> logits, candidates = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.5, 0.0, 0.5]])
        >>> ProgressivePurification()(logits, candidates, memory, epoch=0)  # a new sample: (log 2 + log 4) / 2
        tensor([1.0397])

    Paper: Xu et al., Progressive Purification for Instance-Dependent Partial Label Learning, ICML 2023,
    https://arxiv.org/abs/2206.00830. The formulas and the default threshold are those of other authors' code. Not
    checked at the source: the paper's own margin, and how it shrinks.

    Differs from that code: the weights come from the predictions of the step itself, and not from a second pass after
    it; the threshold stays, where that code lets it grow by a thousandth whenever few candidates were dropped.
    """

    family = "label noise"
    problems = ("classes",)
    remembers: ClassVar = {"weights": Row(("C",)), "sums": Row(("C",)), "period": Row()}

    def __init__(self, *, threshold: float = 1e-3, warmup_epochs: int = 20, period: int = 5) -> None:
        super().__init__()
        _check(threshold, warmup_epochs, period)
        self.threshold = threshold
        self.warmup_epochs = warmup_epochs
        self.period = period

    def forward(self, logits: Tensor, target: Tensor, memory: Mapping[str, Tensor], epoch: int) -> Tensor:
        """(N, C) logits, (N,) classes or (N, C) candidates, what is remembered, and the epoch -> (N,) losses."""
        log_p = log_probabilities(logits, target)
        return -expected(log_p, self._weights(log_p, target, memory, epoch)[0])

    def learn(self, logits: Tensor, target: Tensor, memory: Mapping[str, Tensor], epoch: int) -> dict[str, Tensor]:
        """The new weights of the candidates, their sums over this period, and the number of the period, from 1."""
        used, sums = self._weights(wide(logits), target, memory, epoch)
        weights = candidate_weights(logits, used)
        number = torch.full_like(memory["period"], int(epoch) // self.period + 1)
        return {"weights": weights, "sums": sums + weights, "period": number}

    def _weights(self, like: Tensor, target: Tensor, memory: Mapping[str, Tensor], epoch: int) -> tuple[Tensor, Tensor]:
        """The weights of this step, and the sums that it adds to."""
        inside = (shares(like, target) > 0).to(like.dtype)
        first = inside / inside.sum(1, keepdim=True).clamp_min(1)
        weights, sums = memory["weights"].to(like.dtype), memory["sums"].to(like.dtype)
        is_new = (memory["period"] == 0)[:, None]
        begins = (memory["period"] <= int(epoch) // self.period)[:, None]
        if epoch >= self.warmup_epochs:
            weights = torch.where(begins, purified_weights(sums, threshold=self.threshold), weights)
        return torch.where(is_new, first, weights), torch.where(begins, 0.0, sums)
