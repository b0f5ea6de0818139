"""Adaptive gradient clipping, relative to the weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.kinds import GradientTransform
from lightning_objectives.shapes import check_shapes, check_tensors, forms

_GRADIENT = {"gradient": forms("(...) float")}
_LEAST_NORM = 1e-6
"""What the authors' code divides by at least, so that a gradient of 0 stays 0."""


def clip_to_weights(gradient: Tensor, weight: Tensor, *, clipping: float = 0.01, eps: float = 1e-3) -> Tensor:
    r"""Scale down the gradient of each output unit whose norm is too large for the norm of the unit's weights.

    .. math::
        g_i \leftarrow \lambda \frac{\max(\|w_i\|, \epsilon)}{\|g_i\|} g_i \quad \text{if} \quad
        \|g_i\| > \lambda \max(\|w_i\|, \epsilon)

    A unit i is a row of a matrix, and a filter of a convolution: all axes but the first. A tensor of one dimension, or
    of none, is one unit.

    Args:
        gradient: of any shape, in any float type; the norms are computed in float32 or better.
        weight: of the same shape.
        clipping: :math:`\lambda > 0`; infinity clips nothing.
        eps: :math:`\epsilon > 0`, so that weights of 0 can leave 0.

    Returns:
        the new gradient, of the same shape and type.

    Raises:
        ValueError: gradient and weights have different shapes, whole numbers, or a setting that is not positive.

    Example:
        >>> clip_to_weights(torch.tensor([[0.06, 0.08], [0.0, 0.01]]), torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
        tensor([[0.0300, 0.0400],
                [0.0000, 0.0100]])
    """
    _check(clipping, eps)
    check_shapes(_GRADIENT, gradient=gradient)
    check_tensors([weight], gradient=[gradient])
    norm = _unit_norms(gradient)
    most = _unit_norms(weight.detach()).clamp_min(eps) * clipping
    factor = torch.where(norm < most, 1.0, most / norm.clamp_min(_LEAST_NORM))
    return gradient * factor.to(gradient.dtype)


def _unit_norms(tensor: Tensor) -> Tensor:
    dims = tuple(range(1, tensor.dim())) or None
    wide = torch.promote_types(tensor.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True, dtype=wide)
    return norms


def _check(clipping: float, eps: float) -> None:
    if not clipping > 0:
        raise ValueError(f"clipping={clipping} must be > 0; float('inf') clips nothing.")
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps={eps} must be > 0 and finite, or weights of 0 would keep gradients of 0 for ever.")


class AdaptiveGradientClipping(GradientTransform):
    r"""Keeps each step small beside the weights that it changes, for large batches and networks without BatchNorm.

    Each gradient is clipped by :func:`clip_to_weights`.

    Args:
        clipping: :math:`\lambda > 0`, the greatest part of a unit's norm that its gradient may have; infinity clips
            nothing. The larger the batch, the smaller it must be: the paper uses 0.01 for batches of 4096.
        eps: :math:`\epsilon > 0`, the least norm that weights are taken to have.
        exempt_last: how many parameter tensors at the end of the module keep their gradients. The paper does not clip
            the final linear layer: its weight and its bias are 2 tensors. Set it to 1 without a bias, and to 0 if the
            module does not end with its final layer.

    Raises:
        ValueError: a setting outside its range; in a training, a gradient of another shape than its parameter.

    When to use: to train networks without BatchNorm, or with large batches or high learning rates, if a fixed limit of
    the norm is hard to choose.
    Cost: two passes over the gradients and one over the weights, and a copy of the gradients.
    Interactions: use it in place of the Trainer's ``gradient_clip_val``, which would clip the result once more. Weight
    decay acts after it.

    Example:
        >>> method = AdaptiveGradientClipping(exempt_last=1)
        >>> weights, gradients = [torch.tensor([3.0, 4.0]), torch.ones(1)], [torch.tensor([0.06, 0.08]), torch.ones(1)]
        >>> method.update(gradients, weights, method.init(weights))
        [tensor([0.0300, 0.0400]), tensor([1.])]

    Paper: Brock et al., High-Performance Large-Scale Image Recognition Without Normalization, ICML 2021, equation 3,
    https://arxiv.org/abs/2102.06171.

    Differs from the paper: the final layer is exempt by its place at the end of the module, not by its name.
    """

    def __init__(self, *, clipping: float = 0.01, eps: float = 1e-3, exempt_last: int = 2) -> None:
        _check(clipping, eps)
        if exempt_last < 0:
            raise ValueError(f"exempt_last={exempt_last} must be >= 0; 0 clips every tensor.")
        self.clipping = clipping
        self.eps = eps
        self.exempt_last = exempt_last

    def active(self, *, step: int) -> bool:
        """Return False at an infinite ``clipping``, where nothing is clipped."""
        return self.clipping != float("inf")

    def update(
        self, gradients: Sequence[Tensor | None], params: Sequence[Tensor], state: dict[str, Any]
    ) -> list[Tensor | None]:
        """Clip the gradient of each unit but those of the last tensors."""
        check_tensors(params, gradients=gradients)
        clipped = len(params) - self.exempt_last
        return [
            clip_to_weights(g, w, clipping=self.clipping, eps=self.eps) if g is not None and place < clipped else g
            for place, (g, w) in enumerate(zip(gradients, params))
        ]
