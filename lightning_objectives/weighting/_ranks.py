"""Weights that depend on the order of the losses alone."""

from collections.abc import Callable

import torch
from torch import Tensor


def weights_by_rank(losses: Tensor, mass: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(N,) weights with mean 1 from the place of each loss among the finite ones; equal losses share their weights.

    Args:
        losses: (N,).
        mass: computes the sum of the weights of the r lowest of n losses, for floats r and n; that of all n is n.

    Returns:
        (N,) weights, float32 at least, without gradient. A non-finite loss gets the weight 0, and the others have mean
        1 among themselves. If no loss is finite, every weight is 1.
    """
    dtype = torch.promote_types(losses.dtype, torch.float32)
    finite = losses.detach().isfinite()
    values = torch.where(finite, losses.detach(), torch.inf)
    wide = torch.float32 if losses.device.type == "mps" else torch.float64  # MPS has no float64.
    ordered, count = values.sort().values, finite.sum().to(wide)
    below, upto = (torch.searchsorted(ordered, values, right=right).to(wide) for right in (False, True))
    weights = (mass(upto, count) - mass(below, count)) / (upto - below)
    return torch.where(finite.any(), torch.where(finite, weights, 0.0), 1.0).to(dtype)
