"""CAGrad: conflict-averse gradient descent."""

from typing import Literal

import torch
from torch import Tensor

from lightning_objectives.combination._simplex import gramian, simplex_minimum
from lightning_objectives.kinds import Combination
from lightning_objectives.shapes import check_shapes

Rescale = Literal["none", "square", "linear"]
_HALVINGS = 40
"""How often the interval of the length of the combination is halved."""


def cagrad_weights(gradients: Tensor, *, conflict: float = 0.4, rescale: Rescale = "square") -> Tensor:
    r"""Compute weights for the direction near the mean gradient that lowers the worst term most.

    .. math::
        d = \arg\max_{\|d - g_0\| \le c \|g_0\|} \; \min_k \langle g_k, d \rangle
        = g_0 + \frac{c \|g_0\|}{\|g_w\|} g_w, \qquad g_0 = \frac{1}{K} \sum_k g_k, \quad g_w = \sum_k w_k g_k

    where w >= 0 with the sum 1 makes :math:`\langle g_w, g_0 \rangle + c \|g_0\| \|g_w\|` least. The result is K times
    the weights of d, so that :math:`c = 0` is the sum of the terms.

    Args:
        gradients: (K, P) the flattened gradients, of 10 terms at most.
        conflict: :math:`c`, in [0, 1). 0 is the plain sum; the greater it is, the more the worst term counts.
        rescale: what d is divided by: ``square`` is :math:`1 + c^2`, ``linear`` is :math:`1 + c`, ``none`` is 1.

    Returns:
        (K,) weights >= 0, float32 at least, without gradient. A single term has the weight 1. If a gradient is not
        finite, or if :math:`g_w` is 0, all weights are those of the sum.

    Raises:
        ValueError: gradients of another shape, of no term, or of more than 10; a setting outside its range.

    Example:
        >>> cagrad_weights(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), conflict=0.5)  # The mean gradient is (0.2, 0.4).
        tensor([1.2000, 0.8000])

    Paper: Liu et al., Conflict-Averse Gradient Descent for Multi-Task Learning, NeurIPS 2021,
    https://arxiv.org/abs/2110.14048. The rescaling and the factor K are those of the authors' code.

    Differs from the paper: w is found by bisection of the length of :math:`g_w`, with an exact solution for each
    length, instead of by SciPy.
    """
    _check(conflict, rescale)
    check_shapes(gradients=gradients)
    terms, dtype = len(gradients), torch.promote_types(gradients.dtype, torch.float32)
    if terms == 1:
        return gradients.new_ones(1, dtype=dtype)
    products, _ = gramian(gradients)
    mean = products.mean(1)  # <g_k, g_0>
    radius = conflict * products.mean().clamp_min(0).sqrt()
    # |g| = min over h > 0 of (|g|² / h + h) / 2 makes a quadratic problem of each length h. The best h is |g_w|.
    low, high = torch.zeros_like(radius), torch.ones_like(radius)
    for _ in range(_HALVINGS):
        length = (low + high) / 2
        weights = simplex_minimum(products * (radius / length), mean)
        longer = weights @ products @ weights > length.square()
        low, high = torch.where(longer, length, low), torch.where(longer, high, length)
    norm = (weights @ products @ weights).clamp_min(0).sqrt()
    found = products.isfinite().all() & (norm > torch.finfo(products.dtype).eps ** 0.5)
    added = torch.where(found, radius / torch.where(found, norm, 1) * weights * terms, 0.0)
    divisor = {"none": 1.0, "square": 1 + conflict**2, "linear": 1 + conflict}[rescale]
    return torch.where(found, (1 + added) / divisor, 1.0).to(dtype)


def _check(conflict: float, rescale: Rescale) -> None:
    if not 0 <= conflict < 1:
        raise ValueError(f"conflict={conflict} must be in [0, 1): from 1 on the sum of the terms need not get lower.")
    if rescale not in ("none", "square", "linear"):
        raise ValueError(f"rescale={rescale!r} must be 'none', 'square' or 'linear'.")


class CAGrad(Combination):
    r"""Lowers the worst term as fast as it can, and still ends where the sum of the terms is least.

    The weights are those of :func:`cagrad_weights`.

    Args:
        conflict: :math:`c`, in [0, 1); the authors' runs use 0.4 for NYUv2, and 0.4 or 0.6 for Cityscapes.
        rescale: what the direction is divided by: ``square`` is :math:`1 + c^2`, as in the authors' runs, ``linear`` is
            :math:`1 + c`, ``none`` is 1.

    Raises:
        ValueError: a setting outside its range.

    When to use: if the terms disagree, and the one that is neglected must get better too.
    Cost: a backward pass through the shared part for each term, instead of one for all of them, and K + 1 gradients in
    memory at once. Several processes need one more all-reduce, of K gradients. The weights take 40 small systems of
    equations, which take some milliseconds on a GPU.
    Interactions: with ``square`` the step is longer than that of the sum if all terms agree.

    Example:
        >>> CAGrad(conflict=0.5)(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([1.2000, 0.8000])
    """

    function = staticmethod(cagrad_weights)

    def __init__(self, *, conflict: float = 0.4, rescale: Rescale = "square") -> None:
        super().__init__()
        _check(conflict, rescale)
        self.conflict = conflict
        self.rescale: Rescale = rescale

    def forward(self, gradients: Tensor) -> Tensor:
        """(K, P) gradients -> (K,) weights."""
        return cagrad_weights(gradients, conflict=self.conflict, rescale=self.rescale)
