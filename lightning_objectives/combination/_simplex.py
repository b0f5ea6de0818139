"""Minima over the simplex, without waiting for the device."""

from itertools import product

import torch
from torch import Tensor

_MOST = 10
"""With K terms there are 2ᴷ - 1 faces, each a system of K + 1 equations."""


def gramian(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """(K, K) the products of the gradients, divided by the greatest square, and (1,) the root of that square.

    Raises:
        ValueError: more terms than :func:`simplex_minimum` can weight.
    """
    if len(gradients) > _MOST:
        raise ValueError(
            f"gradients of the shape {tuple(gradients.shape)} belong to {len(gradients)} terms, but there must be at "
            f"most {_MOST}: all combinations of terms are tried. Add some of the losses up first."
        )
    wide = torch.float32 if gradients.device.type == "mps" else torch.float64  # MPS has no float64.
    gradients = gradients.detach().to(torch.promote_types(gradients.dtype, torch.float32))
    scale = torch.linalg.vector_norm(gradients, dim=1).amax(0, keepdim=True)
    gradients = gradients / torch.where(scale > 0, scale, 1)
    return (gradients @ gradients.T).to(wide), scale.to(wide)


def simplex_minimum(square: Tensor, linear: Tensor) -> Tensor:
    r"""Find the weights w >= 0 with the sum 1 for which :math:`\frac{1}{2} w^\top Q w + b^\top w` is least.

    On each face of the simplex the minimum without the bounds solves a linear system. One of these minima is that of
    the simplex, so the best of those that lie within it is taken. It is exact, and the host runs on.

    Args:
        square: (K, K) Q, without negative eigenvalues.
        linear: (K,) b.

    Returns:
        (K,) weights; 1 / K each if a number is not finite.
    """
    terms = len(square)
    faces = torch.tensor([face for face in product((0.0, 1.0), repeat=terms) if any(face)], dtype=square.dtype)
    faces = faces.to(square.device, non_blocking=True)
    # Terms outside of a face have the equation w = 0. The last unknown is the multiplier of the sum.
    system = square.new_zeros(len(faces), terms + 1, terms + 1)
    system[:, :-1, :-1] = square * faces[:, :, None] * faces[:, None] + torch.diag_embed(1 - faces)
    system[:, -1, :-1] = system[:, :-1, -1] = faces
    goal = torch.cat([-linear * faces, square.new_ones(len(faces), 1)], 1)
    found = torch.linalg.solve_ex(system, goal)[0][:, :-1]
    # What a singular system gives means nothing, but any point of the simplex may take part.
    inside = torch.where(found.isfinite(), found, 0.0).clamp_min(0) * faces
    total = inside.sum(1, keepdim=True)
    points = torch.where(total > 0, inside / torch.where(total > 0, total, 1), faces / faces.sum(1, keepdim=True))
    values = ((points @ square) * points).sum(1) / 2 + points @ linear
    best = points[values.argmin(0, keepdim=True)][0]
    return torch.where(values.isfinite().all(), best, 1 / terms)
