"""Small-loss selection."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes
from lightning_objectives.weighting._ranks import weights_by_rank


def small_loss_weights(
    losses: Tensor, epoch: int | Tensor, *, forget_rate: float = 0.2, ramp_epochs: int = 10, exponent: float = 1.0
) -> Tensor:
    r"""Compute weights that are equal for the lowest losses of the batch, and 0 for the others.

    In epoch :math:`T`, counted from 1, the :math:`\lfloor (1 - R) N \rfloor` lowest losses are kept, but one at least:

    .. math::
        R(T) = \tau \min\left(\frac{T^c}{T_k}, 1\right)

    Equal losses at the threshold share its weight.

    Args:
        losses: (N,) the losses of the samples of the whole batch, across all ranks.
        epoch: the number of completed epochs, :math:`T - 1`.
        forget_rate: :math:`\tau \in [0, 1)`, the share that is left out in the end; 0 keeps all.
        ramp_epochs: :math:`T_k \ge 1`.
        exponent: :math:`c > 0`.

    Returns:
        (N,) weights >= 0 with mean 1, float32 at least, without gradient. A non-finite loss gets the weight 0, and the
        others have mean 1 among themselves. If no loss is finite, every weight is 1.

    Raises:
        ValueError: losses of another shape, or a setting outside its range.

    Example:
        >>> small_loss_weights(torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0]), 9, forget_rate=0.4)
        tensor([1.6667, 1.6667, 1.6667, 0.0000, 0.0000])

    Paper: Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels, NeurIPS 2018,
    https://arxiv.org/abs/1804.06872.

    Differs from the paper: one network selects its own samples. In co-teaching each of two networks selects those of
    the other. The authors' code divides the mean loss by the number of kept samples once more, and its ramp begins at
    0.
    """
    check_shapes(losses=losses)
    _check(forget_rate, ramp_epochs, exponent)
    rate: float = forget_rate * min((int(epoch) + 1) ** exponent / ramp_epochs, 1.0)

    def mass(rank: Tensor, count: Tensor) -> Tensor:
        # In floats (1 - 0.8) · 10 is a bit below 2, so that its floor would be 1.
        kept = ((1 - rate) * count + 1e-6).floor().clamp_min(1)
        return torch.minimum(rank, kept) * (count / kept)

    return weights_by_rank(losses, mass)


def _check(forget_rate: float, ramp_epochs: int, exponent: float) -> None:
    if not 0 <= forget_rate < 1:
        raise ValueError(f"forget_rate={forget_rate} must be in [0, 1); 0 keeps all samples.")
    if not ramp_epochs >= 1:
        raise ValueError(f"ramp_epochs={ramp_epochs} must be >= 1; 1 leaves samples out from the first epoch on.")
    if not 0 < exponent < float("inf"):
        raise ValueError(f"exponent={exponent} must be > 0 and finite.")


class SmallLossSelection(Weighting):
    r"""Leaves out the samples with the highest losses, which are mostly those with wrong labels.

    The weights are those of :func:`small_loss_weights`.

    Args:
        forget_rate: :math:`\tau`; set it to the share of wrong labels that you expect. The default is one of the noise
            rates of the paper's experiments.
        ramp_epochs: :math:`T_k`; the authors' code uses 10.
        exponent: :math:`c`; the authors' code uses 1.

    Raises:
        ValueError: a setting outside its range.

    When to use: with noisy labels whose share is roughly known. Networks learn clean labels first, so high losses are a
    sign of a wrong label after a few epochs. Hard but clean samples are lost too: not with rare classes.
    Cost: one all-gather and one sort of the losses.
    Interactions: the network confirms its own mistakes in the long run; stop early. The loss that the model logs is
    that of the kept samples; the unweighted loss is logged beside it.

    Example:
        >>> SmallLossSelection(forget_rate=0.5, ramp_epochs=1)(torch.tensor([3.0, 1.0]), 0)
        tensor([0., 2.])
    """

    function = staticmethod(small_loss_weights)
    family = "label noise"

    def __init__(self, *, forget_rate: float = 0.2, ramp_epochs: int = 10, exponent: float = 1.0) -> None:
        super().__init__()
        _check(forget_rate, ramp_epochs, exponent)
        self.forget_rate = forget_rate
        self.ramp_epochs = ramp_epochs
        self.exponent = exponent

    def active(self, *, step: int) -> bool:
        """Return False if all samples are kept: the criterion is then not touched."""
        return self.forget_rate > 0

    def forward(self, losses: Tensor, epoch: int | Tensor) -> Tensor:
        """(N,) losses -> (N,) weights."""
        settings = {"forget_rate": self.forget_rate, "exponent": self.exponent}
        return small_loss_weights(losses, epoch, ramp_epochs=self.ramp_epochs, **settings)
