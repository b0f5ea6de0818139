"""Gradients whose norms stay near 1."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.gradients._running_means import corrected_mean, new_means, of_each
from lightning_objectives.kinds import GradientTransform
from lightning_objectives.shapes import check_tensors


class GradNormStabilizer(GradientTransform):
    r"""Keeps the norm of each parameter tensor's gradient steady: divides it by its norm, times a slow estimate.

    .. math::
        g_t \leftarrow \frac{g_t}{\|g_t\|} \cdot \frac{\hat\mu_t}{\sqrt{\hat\nu_t} + \epsilon}

    with the running means, corrected for their start at 0,

    .. math::
        \mu_t = \gamma_1 \mu_{t-1} + (1 - \gamma_1) \|g_t\|, \qquad
        \nu_t = \gamma_2 \nu_{t-1} + (1 - \gamma_2) \|g_t\|^2, \qquad
        \hat\mu_t = \frac{\mu_t}{1 - \gamma_1^t}, \quad \hat\nu_t = \frac{\nu_t}{1 - \gamma_2^t}

    The new norm is near 1, whatever the old one was. It is smaller if the recent norms are below those before.

    Args:
        decay: :math:`\gamma_1`, in [0, 1). The authors' code uses 0.7.
        square_decay: :math:`\gamma_2`, in [0, 1). The authors' code uses 0.9.
        eps: :math:`\epsilon > 0`.

    Raises:
        ValueError: a setting outside its range; in a training, a gradient of another shape than its parameter.

    When to use: with Adam, if the norms of the gradients jump, as in trainings of language models in low precision (4
    or 8 bits). The paper uses it after ``AdaptiveSpikeClip``.
    Cost: one pass over the gradients and a copy of them; two numbers for each parameter tensor in the checkpoint.
    Interactions: use an optimizer whose steps do not depend on the scale of the gradients, such as Adam. With SGD all
    tensors would move by the same length. ``gradient_clip_val`` would act on norms near 1. A gradient of 0 stays 0. One
    that is not finite stays so, and does not enter the means.

    Example:
        >>> method, weights = GradNormStabilizer(), [torch.zeros(2)]
        >>> method.update([torch.tensor([30.0, 40.0])], weights, method.init(weights))  # The first norm is 1.
        [tensor([0.6000, 0.8000])]

    Paper: Huang et al., Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam, 2025, AdaGN,
    https://arxiv.org/abs/2502.17055. The formula is that of the authors' code.

    Differs from the authors' code: the corrections count the steps of the means themselves. There they share Adam's
    counter, which each reset of the momentum sets back to 1. That reset, and a schedule of :math:`\gamma_1`, are not
    part of this method.
    """

    def __init__(self, *, decay: float = 0.7, square_decay: float = 0.9, eps: float = 1e-8) -> None:
        for name, value in (("decay", decay), ("square_decay", square_decay)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value} must be in [0, 1): with 1 the mean would never move.")
        if not 0 < eps < float("inf"):
            raise ValueError(f"eps={eps} must be > 0 and finite, or a gradient of 0 would give NaN.")
        self.decay = decay
        self.square_decay = square_decay
        self.eps = eps

    def init(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """No norm yet."""
        return new_means(params, "norm", "square")

    def update(
        self, gradients: Sequence[Tensor | None], params: Sequence[Tensor], state: dict[str, Any]
    ) -> list[Tensor | None]:
        """Move the means, and bring each gradient to its new norm."""
        check_tensors(params, gradients=gradients)
        norms = of_each(gradients, lambda g: torch.linalg.vector_norm(_wide(g)), state["norm"])
        mean = corrected_mean(state, "norm", norms, self.decay)
        square = corrected_mean(state, "square", norms.square(), self.square_decay)
        factors = torch.where(norms == 0, 1.0, mean / (square.sqrt() + self.eps) / norms)
        return [
            None if g is None else (_wide(g) * factor.to(g.device, non_blocking=True)).to(g.dtype)
            for g, factor in zip(gradients, factors)
        ]


def _wide(gradient: Tensor) -> Tensor:
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
