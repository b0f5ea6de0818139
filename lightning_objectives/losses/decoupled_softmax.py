"""Decoupled softmax for labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import shares, wide
from lightning_objectives.shapes import check_shapes


def decoupled_softmax_loss(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Compute for each positive label the cross entropy against the negative labels alone.

    .. math::
        \ell = \frac{1}{|P|} \sum_{l \in P}
        -\log \frac{e^{z_l / \tau}}{e^{z_l / \tau} + \sum_{j \notin P} e^{z_j / \tau}}

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        target: (N, C) float labels, or (N,) int classes, which are labels of one class. Labels above 0 are positive,
            and are weighted by their value; labels of 0 are negative.
        temperature: :math:`\tau > 0`.

    Returns:
        (N,) losses; 0 for a sample without a positive label, and for one without a negative label.

    Raises:
        ValueError: shapes that do not fit, or a ``temperature`` that is not positive.

    Example:
        >>> import torch
        >>> decoupled_softmax_loss(torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 0.0]]))  # log 2, not log 3
        tensor([0.6931])

    Paper: Gupta et al., Dual-Encoders for Extreme Multi-Label Classification, ICLR 2024,
    https://arxiv.org/abs/2310.10636.
    """
    _check(temperature)
    check_shapes(logits=logits, target=target)
    logits = wide(logits) / temperature
    weights = shares(logits, target)
    negative = logits.masked_fill(weights > 0, -torch.inf).logsumexp(1, keepdim=True)
    losses = torch.where(weights > 0, weights * F.softplus(negative - logits), 0.0).sum(1)
    return losses / weights.sum(1).clamp_min(torch.finfo(logits.dtype).tiny)


def _check(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be > 0 and finite.")


class DecoupledSoftmaxLoss(Loss):
    r"""Trains on several labels by a softmax in which the positive labels do not compete with each other.

    The losses are those of :func:`decoupled_softmax_loss`.

    Args:
        temperature: :math:`\tau`; below 1 for logits that are cosines.

    Raises:
        ValueError: a ``temperature`` that is not positive.

    When to use: very many labels, if a sample has only a few and is judged by the highest of them (precision at k).
    Cost: that of cross entropy.
    Interactions: the logits rank the labels and are no probabilities of single labels. Smoothed labels make every label
    positive: do not smooth. The criterion's ``weight`` and ``pos_weight`` are lost.

    Example:
        >>> import torch
        >>> DecoupledSoftmaxLoss()(torch.zeros(1, 2), torch.tensor([0]))  # one label: cross entropy
        tensor([0.6931])
    """

    function = staticmethod(decoupled_softmax_loss)
    family = "many labels"
    problems = ("classes", "labels")

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        _check(temperature)
        self.temperature = temperature

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N, C) labels or (N,) classes -> (N,) losses."""
        return decoupled_softmax_loss(logits, target, temperature=self.temperature)
