"""MGDA: the least convex combination of the gradients."""

import torch
from torch import Tensor

from lightning_objectives.combination._simplex import gramian, simplex_minimum
from lightning_objectives.kinds import Combination
from lightning_objectives.shapes import check_shapes


def mgda_weights(gradients: Tensor) -> Tensor:
    r"""Compute the weights for which the combined gradient is shortest.

    .. math::
        w = \arg\min_{w \ge 0,\, \sum_k w_k = 1} \left\| \sum_k w_k g_k \right\|^2

    A step along this gradient lowers every term, unless it is 0: then no direction does.

    Args:
        gradients: (K, P) the flattened gradients, of 10 terms at most.

    Returns:
        (K,) weights >= 0 with the sum 1, float32 at least, without gradient. If a gradient is not finite, they are
        equal.

    Raises:
        ValueError: gradients of another shape, of no term, or of more than 10.

    Example:
        >>> mgda_weights(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))  # The gradient is (0.4, 0.8).
        tensor([0.2000, 0.8000])

    Paper: Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018,
    https://arxiv.org/abs/1810.04650; the direction is that of Désidéri, 2012.

    Differs from the paper: the minimum is exact. The paper's solver is an iteration with a bound on its steps.
    """
    check_shapes(gradients=gradients)
    products, _ = gramian(gradients)
    weights = simplex_minimum(products, torch.zeros_like(products[0]))
    return weights.to(torch.promote_types(gradients.dtype, torch.float32))


class MGDA(Combination):
    """Finds a step that lowers every term at once, as long as there is one.

    The weights are those of :func:`mgda_weights`.

    When to use: if no term may get worse, whatever their scales mean.
    Cost: a backward pass through the shared part for each term, instead of one for all of them, and K + 1 gradients in
    memory at once. Several processes need one more all-reduce, of K gradients.
    Interactions: the weights sum to 1, not to K, and the combined gradient is no longer than the shortest one: a plain
    sum needs a lower learning rate. A term with a small gradient gets nearly all of the weight, so a term that has
    converged stops the others. Scale the losses first.

    Example:
        >>> MGDA()(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([0.5000, 0.5000])
    """

    function = staticmethod(mgda_weights)

    def forward(self, gradients: Tensor) -> Tensor:
        """(K, P) gradients -> (K,) weights."""
        return mgda_weights(gradients)
