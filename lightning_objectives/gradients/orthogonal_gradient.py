"""The gradient without its part along the weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.kinds import GradientTransform
from lightning_objectives.shapes import check_shapes, check_tensors, forms

_GRADIENT = {"gradient": forms("(...) float")}


def orthogonal_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    r"""Compute the part of a gradient that is orthogonal to the weights, and scale it to the length of the whole
    gradient.

    .. math::
        g_\perp = g - \frac{\langle w, g \rangle}{\langle w, w \rangle} w, \qquad
        g \leftarrow \frac{\|g\|}{\|g_\perp\|} g_\perp

    Args:
        gradient: of any shape.
        weight: of the same shape.

    Returns:
        the new gradient. It is the old one if the weights are 0, and 0 if the whole gradient lies along the weights, up
        to rounding.

    Raises:
        ValueError: gradient and weights have different shapes, or the gradient holds whole numbers.

    Example:
        >>> orthogonal_gradient(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]))
        tensor([0., 5.])
    """
    check_shapes(_GRADIENT, gradient=gradient)
    check_tensors([weight], gradient=[gradient])
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    g, w = gradient.to(dtype), weight.detach().to(dtype)
    square = (w * w).sum()
    rest = g - (w * g).sum() / torch.where(square > 0, square, 1) * w
    norm, rest_norm = torch.linalg.vector_norm(g), torch.linalg.vector_norm(rest)
    # Of a gradient along the weights only rounding errors remain, whose direction means nothing.
    noise = 8 * torch.finfo(gradient.dtype).eps * norm
    return (rest * torch.where(rest_norm > noise, norm / rest_norm, 0)).to(gradient.dtype)


class OrthogonalGradient(GradientTransform):
    """Removes from the gradient of each weight tensor what only scales the weights, for networks that generalise late.

    The gradients are those of :func:`orthogonal_gradient`.

    Args:
        min_dims: tensors of fewer dimensions (biases, gains of norms, scales) keep their gradients. So does every
            tensor of one element, because nothing of its gradient would be left.

    Raises:
        ValueError: a negative ``min_dims``.

    When to use: with a network that fits its training set long before it generalises, without weight decay.
    Cost: a few passes over gradients and weights, and a copy of the gradients.
    Interactions: the gradient no longer shrinks or grows the weights, so weight decay alone sets their scale.

    Example:
        >>> method, weights = OrthogonalGradient(), [torch.tensor([[2.0, 0.0]]), torch.tensor([1.0])]
        >>> method.update([torch.tensor([[3.0, 4.0]]), torch.tensor([1.0])], weights, method.init(weights))
        [tensor([[0., 5.]]), tensor([1.])]

    Paper: Prieto et al., Grokking at the Edge of Numerical Stability, ICLR 2025, https://arxiv.org/abs/2501.04697.

    Differs from the paper: a gradient along the weights gives 0. The released code scales up its rounding errors.
    """

    def __init__(self, *, min_dims: int = 2) -> None:
        if min_dims < 0:
            raise ValueError(f"min_dims={min_dims} must be >= 0; 0 takes every tensor of several elements.")
        self.min_dims = min_dims

    def update(
        self, gradients: Sequence[Tensor | None], params: Sequence[Tensor], state: dict[str, Any]
    ) -> list[Tensor | None]:
        """Make the gradient of each weight tensor orthogonal to it."""
        check_tensors(params, gradients=gradients)
        return [
            orthogonal_gradient(g, w) if g is not None and w.dim() >= self.min_dims and w.numel() > 1 else g
            for g, w in zip(gradients, params)
        ]
