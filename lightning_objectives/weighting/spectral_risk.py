"""Spectral risks within the batch: extremile and exponential."""

import math
from typing import Literal

from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes
from lightning_objectives.weighting._ranks import weights_by_rank

Spectrum = Literal["extremile", "exponential"]


def spectral_risk_weights(losses: Tensor, *, spectrum: Spectrum = "extremile", strength: float = 2.0) -> Tensor:
    r"""Compute weights that rise with the place of each loss in the order of the batch.

    .. math::
        w_{(i)} = N \left[F\!\left(\tfrac{i}{N}\right) - F\!\left(\tfrac{i - 1}{N}\right)\right]

    for the i-th lowest loss, with :math:`F(u) = u^r` (``extremile``) or
    :math:`F(u) = \frac{e^{\rho u} - 1}{e^\rho - 1}` (``exponential``). Equal losses share their weights.

    Args:
        losses: (N,) the losses of the samples of the whole batch, across all ranks.
        spectrum: ``F`` above.
        strength: :math:`r \ge 1`, or :math:`\rho \ge 0`. The least gives equal weights. With an extremile of a whole
            :math:`r`, the weighted mean is the expectation of the highest of :math:`r` losses.

    Returns:
        (N,) weights >= 0 with mean 1, float32 at least, without gradient. A non-finite loss gets the weight 0, and the
        others have mean 1 among themselves. If no loss is finite, every weight is 1.

    Raises:
        ValueError: losses of another shape, an unknown spectrum, or a strength outside its range.

    Example:
        >>> import torch
        >>> spectral_risk_weights(torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0]), strength=2.0)  # (2 i - 1) / 5
        tensor([0.2000, 1.0000, 0.6000, 1.8000, 1.4000])

    Paper: Mehta et al., Distributionally Robust Optimization with Bias and Variance Reduction, ICLR 2024,
    https://arxiv.org/abs/2310.13863. Extremiles: Daouia, Gijbels and Stupfler, 2019.

    Differs from the paper: the order is that of the batch. The paper keeps the losses of all samples, and adds a term
    that makes the weights smooth.
    """
    check_shapes(losses=losses)
    _check(spectrum, strength)

    def mass(rank: Tensor, count: Tensor) -> Tensor:
        if spectrum == "extremile":
            return count * (rank / count) ** strength
        if strength == 0:
            return rank
        # e^rho overflows, so both parts of the fraction are divided by it.
        return count * ((strength * (rank / count - 1)).exp() - math.exp(-strength)) / -math.expm1(-strength)

    return weights_by_rank(losses, mass)


def _check(spectrum: str, strength: float) -> None:
    if spectrum not in ("extremile", "exponential"):
        raise ValueError(f"spectrum={spectrum!r} must be 'extremile' or 'exponential'.")
    least = 1 if spectrum == "extremile" else 0
    if not least <= strength < math.inf:
        raise ValueError(f"strength={strength} must be >= {least} and finite; {least} gives equal weights.")


class SpectralRisk(Weighting):
    r"""Shifts training gently towards the samples with high losses: every sample keeps some weight.

    The weights are those of :func:`spectral_risk_weights`.

    Args:
        spectrum: ``extremile`` or ``exponential``.
        strength: :math:`r` or :math:`\rho`; the highest loss of a large batch has about :math:`r` times the mean weight
            with an extremile.

    Raises:
        ValueError: an unknown spectrum, or a strength outside its range.

    When to use: if the worst cases count, but all samples should be learned from; ``CVaR`` leaves the others out. Not
    with noisy labels. Use large batches: the order within a small batch says little of that in the data set.
    Cost: one all-gather and one sort of the losses.
    Interactions: the loss that the model logs is the weighted one; the unweighted loss is logged beside it.

    Example:
        >>> import torch
        >>> SpectralRisk(strength=3.0)(torch.tensor([0.0, 1.0]))  # 2 · 1/8 and 2 · 7/8
        tensor([0.2500, 1.7500])
    """

    function = staticmethod(spectral_risk_weights)
    family = "worst cases"

    def __init__(self, *, spectrum: Spectrum = "extremile", strength: float = 2.0) -> None:
        super().__init__()
        _check(spectrum, strength)
        self.spectrum: Spectrum = spectrum
        self.strength = strength

    def active(self, *, step: int) -> bool:
        """Return False if all weights are equal: the criterion is then not touched."""
        return self.strength != (1 if self.spectrum == "extremile" else 0)

    def forward(self, losses: Tensor) -> Tensor:
        """(N,) losses -> (N,) weights."""
        return spectral_risk_weights(losses, spectrum=self.spectrum, strength=self.strength)
