"""Gradient alignment: no added term works against the first."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Combination
from lightning_objectives.shapes import check_shapes


def gradient_alignment(gradients: Tensor) -> Tensor:
    r"""Compute weights of the terms that remove from each added gradient what opposes the first.

    .. math::
        \tilde g_k = g_k + c_k\, g_1, \qquad c_k = \max\left(0, -\frac{\langle g_1, g_k \rangle}{\|g_1\|^2}\right),
        \qquad w_1 = 1 + \sum_{k > 1} c_k, \quad w_k = 1

    so that :math:`\sum_k w_k g_k = g_1 + \sum_{k > 1} \tilde g_k`, where no :math:`\tilde g_k` has a component against
    :math:`g_1`. The first gradient itself is never projected.

    Args:
        gradients: (K, P) the flattened gradients, that of the model's own loss first.

    Returns:
        (K,) weights >= 1, float32 at least, without gradient. If a gradient is zero or not finite, its :math:`c` is 0.

    Raises:
        ValueError: gradients of another shape, or of no term.

    Example:
        >>> gradient_alignment(torch.tensor([[2.0, 0.0], [-1.0, 3.0], [1.0, 1.0]]))  # only the second opposes the first
        tensor([1.5000, 1.0000, 1.0000])

    Paper: Yang et al., Dual-Head Knowledge Distillation, KDD 2025, https://arxiv.org/abs/2411.08937; the projection is
    that of Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, https://arxiv.org/abs/2001.06782, in one
    direction.

    Differs from the paper: we weight the losses instead of projecting the gradients, which is the same update.
    """
    check_shapes(gradients=gradients)
    gradients = gradients.detach().to(torch.promote_types(gradients.dtype, torch.float32))
    first, others = gradients[0], gradients[1:]
    conflict = -(others @ first) / (first @ first)
    weights = gradients.new_ones(len(gradients))
    weights[0] += torch.where(conflict.isfinite(), conflict, 0.0).clamp_min(0.0).sum()
    return weights


class GradientAlignment(Combination):
    """Keeps added terms from working against the model's own loss: removes what opposes its gradient.

    The weights are those of :func:`gradient_alignment`.

    When to use: if you see that an added term helps early and slows the model's own loss later.
    Cost: a backward pass through the shared part for each term, instead of one for all of them, and K + 1 gradients in
    memory at once. Several processes need one more all-reduce, of K gradients.
    Interactions: if the terms disagree, the weight of the model's own loss grows, and with it the gradient's norm. This
    also holds for the head, even if only the model's own loss reaches it.

    Example:
        >>> GradientAlignment()(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        tensor([1., 1.])
    """

    exemplar = True
    function = staticmethod(gradient_alignment)

    def forward(self, gradients: Tensor) -> Tensor:
        """(K, P) gradients -> (K,) weights."""
        return gradient_alignment(gradients)
