"""Clipping of the entries of a gradient that are far greater than usual."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.gradients._running_means import corrected_mean, new_means, of_each
from lightning_objectives.kinds import GradientTransform
from lightning_objectives.shapes import check_shapes, check_tensors, forms

_GRADIENT = {"gradient": forms("(...) float"), "threshold": forms("()")}


def clip_spikes(gradient: Tensor, threshold: Tensor) -> Tensor:
    r"""Shrink the entries of a gradient that are greater than a threshold, so that the greatest one reaches it.

    .. math::
        g_i \leftarrow \frac{g_i}{\max_j |g_j|}\, T \quad \text{if} \quad |g_i| > T

    Args:
        gradient: of any shape.
        threshold: :math:`T \ge 0`, a tensor of no dimension.

    Returns:
        the new gradient.

    Raises:
        ValueError: a gradient of whole numbers, or a threshold with a dimension.

    Example:
        >>> clip_spikes(torch.tensor([0.5, -4.0, 2.0]), torch.tensor(1.0))
        tensor([ 0.5000, -1.0000,  0.5000])
    """
    check_shapes(_GRADIENT, gradient=gradient, threshold=threshold)
    if not gradient.numel():
        return gradient
    sizes = gradient.abs()
    shrunk = gradient * (threshold / sizes.max()).to(gradient.dtype)
    return torch.where(sizes > threshold, shrunk, gradient)


class AdaptiveSpikeClip(GradientTransform):
    r"""Clips sudden spikes in the gradient of each parameter tensor, by a threshold that follows the usual size.

    The gradients are clipped by :func:`clip_spikes`. The threshold of each tensor is the running mean of the greatest
    size of its entries, this step's included:

    .. math::
        T_t = \theta\, T_{t-1} + (1 - \theta) \max_i |g_{t,i}|, \qquad \hat T_t = \frac{T_t}{1 - \theta^t}

    Args:
        decay: :math:`\theta`, in [0, 1). The authors' code uses 0.999; 0 clips nothing.

    Raises:
        ValueError: a decay outside of [0, 1); in a training, a gradient of another shape than its parameter.

    When to use: in trainings with loss spikes, above all of language models in low precision (4 or 8 bits). The paper
    uses it together with ``GradNormStabilizer``, which comes after it, and with Adam.
    Cost: two passes over the gradients and a copy of them; one number for each parameter tensor in the checkpoint.
    Interactions: use it in place of the Trainer's ``gradient_clip_val``. A gradient that is not finite is left as it
    is, and does not enter the mean.

    Example:
        >>> method, weights = AdaptiveSpikeClip(decay=0.5), [torch.zeros(2)]
        >>> state = method.init(weights)
        >>> for gradient in ([1.0, 0.5], [-4.0, 0.5]):  # The second threshold is (0.25 · 1 + 0.5 · 4) / 0.75 = 3.
        ...     print(method.update([torch.tensor(gradient)], weights, state))
        [tensor([1.0000, 0.5000])]
        [tensor([-3.0000,  0.5000])]

    Paper: Huang et al., Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam, 2025, AdaClip,
    https://arxiv.org/abs/2502.17055. The formula is that of the authors' code.

    Differs from the authors' code: the correction :math:`1 - \theta^t` counts the steps of the mean itself. There it
    shares Adam's counter, which each reset of the momentum sets back to 1. That reset is not part of this method.
    """

    def __init__(self, *, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be in [0, 1): with 1 the threshold would never move.")
        self.decay = decay

    def active(self, *, step: int) -> bool:
        """Return False without a ``decay``, where the threshold is always the greatest entry."""
        return self.decay > 0

    def init(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """No threshold yet."""
        return new_means(params, "greatest")

    def update(
        self, gradients: Sequence[Tensor | None], params: Sequence[Tensor], state: dict[str, Any]
    ) -> list[Tensor | None]:
        """Move the thresholds, and clip each gradient by its own."""
        check_tensors(params, gradients=gradients)
        greatest = of_each(gradients, lambda g: g.abs().max(), state["greatest"])
        thresholds = corrected_mean(state, "greatest", greatest, self.decay)
        return [
            None if g is None else clip_spikes(g, threshold.to(g.device, non_blocking=True))
            for g, threshold in zip(gradients, thresholds)
        ]
