"""UPGrad: each gradient is projected so that it works against no other, and then the mean is taken."""

from itertools import product

import torch
from torch import Tensor

from lightning_objectives.combination._cosines import cosines
from lightning_objectives.kinds import Combination
from lightning_objectives.shapes import check_shapes

_MOST = 10
"""With K terms there are 2ᴷ sets of terms, each a system of K equations."""


def upgrad_weights(gradients: Tensor) -> Tensor:
    r"""Compute the weights of the mean of the projected gradients.

    Each gradient is projected onto the directions that raise no term:

    .. math::
        w = \frac1K \sum_i v_i, \qquad v_i = \arg\min_{v \ge e_i} \| G^\top v \|^2

    with the gradients in the rows of G, and :math:`e_i` the unit vectors. Without conflict the result is the mean.

    Args:
        gradients: (K, P) the flattened gradients, of 10 terms at most.

    Returns:
        (K,) weights >= 1 / K, float32 at least, without gradient. If a gradient is not finite, all are 1 / K.

    Raises:
        ValueError: gradients of another shape, of no term, or of more than 10.

    Example:
        >>> upgrad_weights(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))  # (1/2, 1/2) and (0, 1), on average
        tensor([1.0000, 0.7500])

    Paper: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization, 2024, https://arxiv.org/abs/2406.16232.
    Not checked at the source: the number of the definition.

    Differs from the authors' library torchjd: the solution is exact, and the scale of the gradients means nothing.
    """
    check_shapes(gradients=gradients)
    terms = len(gradients)
    if terms > _MOST:
        raise ValueError(
            f"gradients of the shape {tuple(gradients.shape)} belong to {terms} terms, but there must be at most "
            f"{_MOST}: all combinations of terms are tried. Add some of the losses up first."
        )
    products, lengths = cosines(gradients)
    added = _least_additions(products)
    # Row k of column i: how much of gradient k is added to gradient i, which is lengths[i] / lengths[k] of its unit.
    shares = torch.eye(terms, dtype=added.dtype, device=added.device) + added * lengths / lengths[:, None]
    weights = torch.where(shares.isfinite().all(), shares.mean(1), 1 / terms)
    return weights.to(torch.promote_types(gradients.dtype, torch.float32))


def _least_additions(square: Tensor) -> Tensor:
    """(K, K) the u >= 0 in each column i for which (u + e_i)^T Q (u + e_i) is least.

    Those of its numbers that are above 0 solve a linear system. All sets of them are tried, and the best one is taken:
    it is exact, and the host runs on.
    """
    terms = len(square)
    sets = torch.tensor(list(product((0.0, 1.0), repeat=terms)), dtype=square.dtype)
    sets = sets.to(square.device, non_blocking=True)
    # Terms outside of a set have the equation u = 0.
    systems = square * sets[:, :, None] * sets[:, None] + torch.diag_embed(1 - sets)
    found = torch.linalg.solve_ex(systems, -square * sets[:, :, None])[0]
    # What a singular system gives means nothing, but any u >= 0 may take part.
    found = torch.where(found.isfinite(), found, 0.0).clamp_min(0) * sets[:, :, None]
    sums = found + torch.eye(terms, dtype=square.dtype, device=square.device)
    values = ((square @ sums) * sums).sum(1)
    best = values.argmin(0).expand(1, terms, -1)
    return torch.where(values.isfinite().all(), found.gather(0, best)[0], torch.nan)


class UPGrad(Combination):
    """Takes the mean of all gradients after each has given up what would raise another term.

    The weights are those of :func:`upgrad_weights`.

    When to use: if several terms conflict, none may get worse, and each shall count as much as its gradient is long.
    Cost: a backward pass through the network for each term, instead of one for all of them, and K + 1 gradients in
    memory at once. Several processes need one more all-reduce, of K gradients. The weights take 2ᴷ small systems of
    equations.
    Interactions: without conflict the weights are 1 / K, the mean and not the sum: compare with K times the learning
    rate. With two terms it is half of :class:`PCGrad`.

    Example:
        >>> UPGrad()(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([0.5000, 0.5000])
    """

    function = staticmethod(upgrad_weights)
    family = "multi-task"

    def forward(self, gradients: Tensor) -> Tensor:
        """(K, P) gradients -> (K,) weights."""
        return upgrad_weights(gradients)
