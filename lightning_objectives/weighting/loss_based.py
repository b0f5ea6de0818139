"""Loss-based sample reweighting within the batch."""

from typing import Literal

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes

Strategy = Literal["lin_upper", "quadratic", "extremes"]


def loss_based_weights(losses: Tensor, *, strategy: Strategy = "lin_upper", temperature: float = 1.0) -> Tensor:
    r"""Compute the weight of each sample from where its loss stands between the lowest and the highest loss of the
    batch.

    .. math::
        h_i = \frac{2 \ell_i - (\ell_{max} + \ell_{min})}{\ell_{max} - \ell_{min}} \in [-1, 1], \qquad
        w = N \operatorname{softmax}(f(h) / \tau)

    The strategy sets ``f``: ``lin_upper`` :math:`\min(h + 1, 1)` lowers the weight of low-loss samples only,
    ``quadratic`` :math:`1 - h^2` that of both ends, ``extremes`` :math:`|h|` that of the middle.

    Args:
        losses: (N,) the losses of the samples of the whole batch, across all ranks.
        strategy: ``f`` above.
        temperature: :math:`\tau > 0`. The ratio of two weights is at most :math:`e^{1/\tau}`; infinity gives uniform
            weights.

    Returns:
        (N,) weights >= 0 with mean 1, float32 at least, without gradient. A non-finite loss gets the weight 0, and the
        others have mean 1 among themselves. If no loss is finite, every weight is 1.

    Raises:
        ValueError: losses of another shape, an unknown strategy, or a temperature that is not positive.

    Example:
        >>> loss_based_weights(torch.tensor([0.0, 1.0, 2.0]), strategy="lin_upper")
        tensor([0.4661, 1.2670, 1.2670])

    Paper: Sow et al., Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining, ICLR 2025,
    https://arxiv.org/abs/2502.06733.

    Differs from the paper: :math:`h` is computed from the differences to both ends, because the form in the released
    code cancels if the losses are close. A non-finite loss is set aside instead of spoiling every weight.
    """
    check_shapes(losses=losses)
    _check(strategy, temperature)
    losses = losses.detach().to(torch.promote_types(losses.dtype, torch.float32))
    finite = losses.isfinite()
    low = torch.where(finite, losses, torch.inf).amin() if losses.numel() else losses.sum()
    high = torch.where(finite, losses, -torch.inf).amax() if losses.numel() else losses.sum()
    h = ((losses - low) - (high - losses)) / (high - low).clamp_min(1e-6)  # exactly -1 and 1 at the ends
    if strategy == "lin_upper":
        f = (h + 1).clamp_max(1.0)
    elif strategy == "quadratic":
        f = 1 - h.square()
    else:
        f = h.abs()
    shares = torch.where(finite, f / temperature, -torch.inf).softmax(0)
    return torch.where(finite.any(), shares * finite.sum(), torch.ones_like(shares))


def _check(strategy: str, temperature: float) -> None:
    if strategy not in ("lin_upper", "quadratic", "extremes"):
        raise ValueError(f"strategy={strategy!r} must be 'lin_upper', 'quadratic' or 'extremes'.")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be > 0; use float('inf') for uniform weights.")


class LossBasedReweighting(Weighting):
    r"""Down-weights samples with a low loss, so that training spends more of each step on the hard ones.

    The weights are those of :func:`loss_based_weights`, and uniform for the first ``warmup_steps`` optimizer steps.

    Args:
        strategy: which losses are favoured, see the function.
        temperature: :math:`\tau`; the paper's runs use 0.4 and 1.
        warmup_steps: optimizer steps with uniform weights, during which the criterion is left exactly as it is.

    Raises:
        ValueError: an unknown strategy, a temperature that is not positive, or negative ``warmup_steps``.

    When to use: with large batches (16 samples or more across all ranks) of redundant data. Avoid tiny batches: with
    two samples, one always gets the highest weight and the other the lowest, however close their losses are. With noisy
    labels ``lin_upper`` keeps the mislabelled samples at full weight; ``quadratic`` lowers them.
    Cost: one all-gather of the losses; no extra forward pass.
    Interactions: the gradient norm changes with the weights, so you may need another clipping threshold. The loss that
    the model logs is the weighted one; the unweighted loss is logged beside it.

    Example:
        >>> LossBasedReweighting(strategy="quadratic")(torch.tensor([0.0, 1.0, 2.0]))
        tensor([0.6358, 1.7284, 0.6358])
    """

    function = staticmethod(loss_based_weights)
    family = "redundant samples"

    def __init__(self, *, strategy: Strategy = "lin_upper", temperature: float = 1.0, warmup_steps: int = 0) -> None:
        super().__init__()
        _check(strategy, temperature)
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps} must be >= 0.")
        self.strategy: Strategy = strategy
        self.temperature = temperature
        self.warmup_steps = warmup_steps

    def active(self, *, step: int) -> bool:
        """Return False during the warm-up and at infinite temperature: the criterion is then not touched."""
        return step >= self.warmup_steps and self.temperature != float("inf")

    def forward(self, losses: Tensor) -> Tensor:
        """(N,) losses -> (N,) weights."""
        return loss_based_weights(losses, strategy=self.strategy, temperature=self.temperature)
