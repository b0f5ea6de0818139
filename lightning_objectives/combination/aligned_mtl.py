"""Aligned-MTL: gradients are made orthogonal and equally long."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.combination._cosines import cosines
from lightning_objectives.kinds import Combination
from lightning_objectives.shapes import check_shapes


def aligned_mtl_weights(gradients: Tensor, *, preferences: Sequence[float] | None = None) -> Tensor:
    r"""Compute weights that make the gradients orthogonal and equally long, before they are added up.

    .. math::
        w = \sqrt{\lambda_{\min}} \; V \Lambda^{-1/2} V^\top p, \qquad G G^\top = V \Lambda V^\top

    with the gradients in the rows of G, and the preferences p. Eigenvalues that are 0 up to rounding do not count.

    Args:
        gradients: (K, P) the flattened gradients.
        preferences: :math:`p`, a number >= 0 for each term; None is 1 for each, the sum.

    Returns:
        (K,) weights, float32 at least, without gradient; some may be negative. If a gradient is not finite, or all are
        0, they are the preferences.

    Raises:
        ValueError: gradients of another shape or of no term, or preferences of another number or below 0.

    Example:
        >>> aligned_mtl_weights(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))  # The longer gradient is shortened.
        tensor([0.5000, 1.0000])

    Paper: Senushkin et al., Independent Component Alignment for Multi-Task Learning, CVPR 2023,
    https://arxiv.org/abs/2305.19000. The scale is that of the smallest singular value.

    Differs from the paper: the gradients are those of all parameters, and not of the shared ones alone.
    """
    check_shapes(gradients=gradients)
    terms, dtype = len(gradients), torch.promote_types(gradients.dtype, torch.float32)
    _check(preferences, terms)
    angles, lengths = cosines(gradients)
    # A length of 1 stands for 0 in the cosines, which do not say which of the gradients are 0.
    lengths = torch.where(gradients.any(1), lengths, 0)
    lengths = lengths / lengths.amax(0, keepdim=True)  # NaN if all are 0
    products = angles * lengths[:, None] * lengths
    finite = products.isfinite().all()
    values, vectors = torch.linalg.eigh(torch.where(finite, products, 0.0))
    kept = values > values[-1] * terms * torch.finfo(dtype).eps
    least = torch.where(kept, values, torch.inf).amin(0)
    factors = torch.where(kept, least / torch.where(kept, values, 1.0), 0.0).sqrt()
    wanted = products.new_ones(terms) if preferences is None else _on(preferences, products)
    return torch.where(kept.any(), vectors @ (factors * (vectors.T @ wanted)), wanted).to(dtype)


def _on(numbers: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=like.dtype).to(like.device, non_blocking=True)


def _check(preferences: Sequence[float] | None, terms: int | None = None) -> None:
    if preferences is None:
        return
    if not preferences or not all(0 <= number < float("inf") for number in preferences):
        raise ValueError(f"preferences={preferences} must hold a finite number >= 0 for each term of the loss.")
    if terms is not None and len(preferences) != terms:
        raise ValueError(
            f"The loss has {terms} terms, but preferences={preferences} has {len(preferences)} numbers. Give one for "
            "each term, in the order of the terms."
        )


class AlignedMTL(Combination):
    r"""Removes conflicts and dominance between the gradients of several tasks, and keeps the weights that you prefer.

    The weights are those of :func:`aligned_mtl_weights`.

    Args:
        preferences: how much each task counts, in the order of the terms; None for equal tasks.

    Raises:
        ValueError: preferences below 0; in a step, another number of terms.

    When to use: if several tasks share a network, conflict or differ in scale, and you know how much each one counts.
    Cost: a backward pass through the network for each term, instead of one for all of them, and K + 1 gradients in
    memory at once. Several processes need one more all-reduce, of K gradients. It waits for the device in each step:
    torch finds eigenvalues together with the host.
    Interactions: all aligned gradients are as long as the smallest singular value, so nearly parallel or opposite
    gradients, or one that has become small, make the whole step small: Adam undoes this, SGD does not.

    Example:
        >>> AlignedMTL(preferences=[1.0, 3.0])(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([0.5000, 3.0000])
    """

    function = staticmethod(aligned_mtl_weights)
    family = "multi-task"
    waits = "torch finds eigenvalues together with the host"

    def __init__(self, *, preferences: Sequence[float] | None = None) -> None:
        super().__init__()
        _check(preferences)
        self.preferences = None if preferences is None else tuple(preferences)

    def forward(self, gradients: Tensor) -> Tensor:
        """(K, P) gradients -> (K,) weights."""
        return aligned_mtl_weights(gradients, preferences=self.preferences)
