"""Nash-MTL: the terms bargain for a direction."""

from typing import ClassVar

import torch
from torch import Tensor

from lightning_objectives.combination._cosines import cosines
from lightning_objectives.kinds import Combination
from lightning_objectives.shapes import check_shapes

_STEPS = 50
"""Newton steps; 10 are enough unless two gradients are nearly opposite."""
_RIDGE = 1e-6
"""Added to the squared lengths, so that opposite gradients have weights of finite size."""


def nash_mtl_weights(gradients: Tensor, *, max_norm: float = 1.0) -> Tensor:
    r"""Compute the weights on which the terms agree if each wants a direction that lowers it most.

    .. math::
        G G^\top \alpha = \frac{1}{\alpha}, \qquad
        \alpha = \arg\min_{\alpha > 0} \tfrac12 \| G^\top \alpha \|^2 - \sum_k \log \alpha_k

    with the gradients in the rows of G. The combined gradient :math:`G^\top \alpha` has the length :math:`\sqrt K`,
    whatever the gradients are, and is shortened to ``max_norm``.

    Args:
        gradients: (K, P) the flattened gradients.
        max_norm: the greatest length of the combined gradient; infinity keeps :math:`\sqrt K`.

    Returns:
        (K,) weights > 0, float32 at least, without gradient. They change by 1 / s if a gradient is multiplied by s.
        If some multiples of the gradients add up to 0, there is no solution: then no weighted gradient is longer than
        :math:`1000 \sqrt K`. If a gradient is not finite, all weights are 1.

    Raises:
        ValueError: gradients of another shape or of no term, or a ``max_norm`` that is not above 0.

    Example:
        >>> nash_mtl_weights(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), max_norm=float("inf"))
        tensor([0.5000, 1.0000])

    Paper: Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022, https://arxiv.org/abs/2202.01017. As in
    the authors' code, ``max_norm`` is 1.

    Differs from the authors' code: damped Newton steps find the solution, also where gradients conflict so much that
    the code's solver fails and leaves all weights at 1. They begin anew in each step, so nothing is remembered. The
    gradients are those of all parameters, and not of the shared ones alone.
    """
    _check(max_norm)
    check_shapes(gradients=gradients)
    products, lengths = cosines(gradients)
    products = products + _RIDGE * torch.eye(len(products), dtype=products.dtype, device=products.device)
    weights = torch.ones_like(lengths)
    for _ in range(_STEPS):
        slope = products @ weights - 1 / weights
        move = torch.linalg.solve_ex(products + torch.diag(weights**-2), slope)[0]
        # So damped, a step never leaves the positive numbers.
        weights = weights - move / (1 + (slope @ move).clamp_min(0).sqrt())
    found = weights.isfinite().all() & (weights > 0).all()
    # Cosines that are wrong by more than the ridge may have no solution at all, and weights without bound.
    weights = weights.clamp_max((len(gradients) / _RIDGE) ** 0.5)
    weights = weights / lengths * min(1.0, max_norm / len(gradients) ** 0.5)
    return torch.where(found, weights, 1.0).to(torch.promote_types(gradients.dtype, torch.float32))


def _check(max_norm: float) -> None:
    if not max_norm > 0:
        raise ValueError(f"max_norm={max_norm} must be > 0; infinity leaves the combined gradient as it is.")


class NashMTL(Combination):
    r"""Trains several tasks at the same pace, however much their losses differ in scale.

    The weights are those of :func:`nash_mtl_weights`.

    Args:
        max_norm: the greatest length of the combined gradient, and in fact its length, because it would be
            :math:`\sqrt K`; 1 in the authors' code.

    Raises:
        ValueError: a ``max_norm`` that is not above 0.

    When to use: if several tasks share a network, and none may be neglected because its gradient is small.
    Cost: a backward pass through the network for each term, instead of one for all of them, and K + 1 gradients in
    memory at once. Several processes need one more all-reduce, of K gradients. The weights take 50 small systems of
    equations, which take some milliseconds on a GPU.
    Interactions: the combined gradient has a fixed length, so steps of SGD do not get shorter as the training
    converges: let the learning rate decay. Losses keep no scale, so weights that your step gives its tasks have no
    effect.

    Example:
        >>> NashMTL()(torch.tensor([[3.0, 4.0]]))  # A gradient of the length 5 gets the length 1.
        tensor([0.2000])
    """

    function = staticmethod(nash_mtl_weights)
    family = "multi-task"
    unkept_laws: ClassVar = {"one_term_alone_keeps_its_weight": "its gradient gets a fixed length too"}

    def __init__(self, *, max_norm: float = 1.0) -> None:
        super().__init__()
        _check(max_norm)
        self.max_norm = max_norm

    def forward(self, gradients: Tensor) -> Tensor:
        """(K, P) gradients -> (K,) weights."""
        return nash_mtl_weights(gradients, max_norm=self.max_norm)
