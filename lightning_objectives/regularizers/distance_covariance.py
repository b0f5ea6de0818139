"""Distance covariance of predictions and groups."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_classes, check_shapes


def distance_covariance(logits: Tensor, group: Tensor) -> Tensor:
    r"""Compute how much the predictions depend on the group, as their squared distance covariance.

    .. math::
        \frac{1}{N^2} \sum_{i, j} A_{ij} B_{ij}, \qquad A_{ij} = a_{ij} - \bar a_{i \cdot} - \bar a_{\cdot j} +
        \bar a_{\cdot \cdot}

    with the Euclidean distances :math:`a_{ij}` of the softmax probabilities. B is the same of the distances of the
    groups, which are 0 within a group and :math:`\sqrt 2` between two, as of one-hot vectors.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        group: (N,) int.

    Returns:
        a number >= 0; over the whole population it is 0 if and only if predictions and groups are independent. A batch
        has a small value even then.

    Raises:
        ValueError: shapes that do not fit, or fewer than two classes.

    Example:
        >>> logits = torch.tensor([[30.0, 0.0], [0.0, 30.0]])  # certain: a distance of √2 as well
        >>> distance_covariance(logits, torch.tensor([0, 1]))  # A = B = √2 / 2 · [[-1, 1], [1, -1]]
        tensor(0.5000)
    """
    check_shapes(logits=logits, group=group)
    check_classes(logits)
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    # By products of the rows, small distances would be lost in the rounding.
    predicted = torch.cdist(p, p, compute_mode="donot_use_mm_for_euclid_dist")
    groups = (group[:, None] != group).to(p.dtype) * 2**0.5
    return (_centred(predicted) * _centred(groups)).sum() / max(len(p), 1) ** 2


def _centred(distances: Tensor) -> Tensor:
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()


class DistanceCovariance(Regularizer):
    r"""Makes predictions independent of the group of a sample, also in ways that no linear measure sees.

    The term is that of :func:`distance_covariance`. Its factor is the callback's ``strength``, with which accuracy is
    traded for independence: choose it by how far the predictions of the groups differ on validation data.

    When to use: for fairness between groups, if predictions shall not depend on the group at all (demographic parity).
    For several attributes at once number their combinations: each attribute by itself may look fair where the
    combinations do not.
    Cost: two matrices of all pairs of the batch, (N, N).
    Interactions: it counts the pairs of one process and one micro-batch, so take batches with many samples of each
    group. The binary case has two columns, (0, z).

    Example:
        >>> DistanceCovariance()(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))  # One prediction for all.
        tensor(0.)

    Paper: Lee et al., Machine Learning with Multitype Protected Attributes: Intersectional Fairness through
    Regularisation, 2025, https://arxiv.org/abs/2509.08163.

    Differs from the paper: attributes are classes; continuous ones, and the joint covariance of several, are not here.
    """

    function = staticmethod(distance_covariance)
    family = "group shift"
    problems = ("classes",)
    coupled = "a covariance is one number for the batch"
    by_process = "each process compares its own samples"

    def forward(self, logits: Tensor, group: Tensor) -> Tensor:
        """(N, C) logits and (N,) groups -> a number."""
        return distance_covariance(logits, group)
