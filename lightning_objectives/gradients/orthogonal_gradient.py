"""The gradient without its part along the weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.kinds import GradientTransform


def orthogonal_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    r"""The part of a gradient that is orthogonal to the weights, as long as the whole was.

    .. math::
        g_\perp = g - \frac{\langle w, g \rangle}{\langle w, w \rangle} w, \qquad
        g \leftarrow \frac{\|g\|}{\|g_\perp\|} g_\perp

    Args:
        gradient: of any shape.
        weight: of the same shape.

    Returns:
        the new gradient; the old one where the weights are 0; 0 where it is all along the weights, up to rounding.

    Example:
        >>> orthogonal_gradient(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]))
        tensor([0., 5.])
    """
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    g, w = gradient.to(dtype), weight.detach().to(dtype)
    square = (w * w).sum()
    rest = g - (w * g).sum() / torch.where(square > 0, square, 1) * w
    norm, left = torch.linalg.vector_norm(g), torch.linalg.vector_norm(rest)
    # what is left of a gradient along the weights is as long as its rounding, in no direction that means anything
    noise = 8 * torch.finfo(gradient.dtype).eps * norm
    return (rest * torch.where(left > noise, norm / left, 0)).to(gradient.dtype)


class OrthogonalGradient(GradientTransform):
    """Takes from the gradient of each weight tensor what only scales the weights, by :func:`orthogonal_gradient`.

    Args:
        min_dims: tensors of fewer dimensions (biases, gains of norms, scales) keep their gradients, and so does every
            tensor of one element, of whose gradient nothing would be left.

    Raises:
        ValueError: a negative ``min_dims``.

    When to use: a network that fits its training set long before it generalises, without weight decay. Cost: a few
    passes over gradients and weights, and a copy of the gradients.
    Interactions: weights no longer shrink or grow by the gradient, so that weight decay alone sets their scale.

    Example:
        >>> method, weights = OrthogonalGradient(), [torch.tensor([[2.0, 0.0]]), torch.tensor([1.0])]
        >>> method.update([torch.tensor([[3.0, 4.0]]), torch.tensor([1.0])], weights, method.init(weights))
        [tensor([[0., 5.]]), tensor([1.])]

    Paper: Prieto et al., Grokking at the Edge of Numerical Stability, ICLR 2025,
    https://arxiv.org/abs/2501.04697.

    Differs from the paper: a gradient along the weights gives 0, where the released code scales up what rounding left.
    """

    def __init__(self, *, min_dims: int = 2) -> None:
        if min_dims < 0:
            raise ValueError(f"min_dims={min_dims} must be >= 0; 0 takes every tensor of several elements.")
        self.min_dims = min_dims

    def update(
        self, gradients: Sequence[Tensor | None], params: Sequence[Tensor], state: dict[str, Any]
    ) -> list[Tensor | None]:
        """The gradients, those of the weight tensors orthogonal to them."""
        return [
            orthogonal_gradient(g, w) if g is not None and w.dim() >= self.min_dims and w.numel() > 1 else g
            for g, w in zip(gradients, params)
        ]
