"""Running means of one number for each parameter tensor, such as the norm of its gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def new_means(params: Sequence[Tensor], *names: str) -> dict[str, Any]:
    """A state of running means before the first number; under each name the means, and the share that is known."""
    device = params[0].device if params else None
    return {name: torch.zeros(2, len(params), device=device) for name in names}


def corrected_mean(state: dict[str, Any], name: str, values: Tensor, decay: float) -> Tensor:
    """Add (P,) values to the running means of a state, and return these, corrected for their start at 0.

    A value that is not finite leaves its mean as it is. Each mean has a count of its own, so that a parameter without a
    gradient in some steps has the right correction.
    """
    mean, known = state[name]
    # The first value has the factor 1 exactly: it is its own mean, to the bit.
    new = decay * known + (1 - decay)
    moved = mean + (values - mean) * ((1 - decay) / new)
    state[name] = torch.where(values.isfinite(), torch.stack([moved, new]), state[name])
    means: Tensor = state[name][0]
    return means


def of_each(gradients: Sequence[Tensor | None], number: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """(P,) a number of each gradient, on the device and in the type of ``like``; NaN for a missing or an empty one."""
    missing = like.new_full((), torch.nan)
    numbers = [missing if g is None or not g.numel() else number(g).to(like, non_blocking=True) for g in gradients]
    return torch.stack(numbers) if numbers else like.new_zeros(0)
