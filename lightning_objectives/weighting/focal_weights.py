"""Focal weights."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes


def focal_weights(losses: Tensor, *, gamma: float = 2.0) -> Tensor:
    r"""Compute weights that are small where the network already gives the target a high probability.

    .. math::
        w_i \propto (1 - e^{-\ell_i})^\gamma

    where :math:`e^{-\ell}` is the probability of the target, if :math:`\ell` is a cross entropy.

    Args:
        losses: (N,) the losses of the samples of the whole batch, across all ranks. Negative ones count as 0.
        gamma: :math:`\gamma \ge 0`; 0 gives equal weights.

    Returns:
        (N,) weights >= 0 with mean 1, float32 at least, without gradient. A non-finite loss gets the weight 0, and the
        others have mean 1 among themselves. If no loss is finite, or all are 0, every weight is 1.

    Raises:
        ValueError: losses of another shape, or a ``gamma`` outside its range.

    Example:
        >>> focal_weights(torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0]))
        tensor([0.2443, 1.1798, 0.6305, 1.5207, 1.4247])

    Paper: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, https://arxiv.org/abs/1708.02002.

    Differs from the paper: the factor has the mean 1 in each batch and no gradient, so this is not the gradient of the
    focal loss, which is :class:`~lightning_objectives.losses.FocalLoss`.
    """
    check_shapes(losses=losses)
    _check(gamma)
    losses = losses.detach().to(torch.promote_types(losses.dtype, torch.float32))
    finite = losses.isfinite()
    if gamma == 0:
        return torch.where(finite.any(), finite.to(losses.dtype), 1.0)
    logs = torch.where(finite, gamma * (-torch.expm1(-losses.clamp_min(0))).log(), -torch.inf)
    return torch.where((logs > -torch.inf).any(), logs.softmax(0) * finite.sum(), 1.0)


def _check(gamma: float) -> None:
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma={gamma} must be >= 0 and finite; 0 gives equal weights.")


class FocalWeights(Weighting):
    r"""Down-weights samples that the network already gets right, whatever the model's cross entropy is.

    The weights are those of :func:`focal_weights`.

    Args:
        gamma: :math:`\gamma \ge 0`; the focal loss uses 2.

    Raises:
        ValueError: a ``gamma`` outside its range.

    When to use: if there are many easy samples, and the model's criterion must stay (its class weights, its smoothing).
    The losses must be cross entropies, because :math:`e^{-\ell}` must be a probability; a regression is refused.
    Cost: one all-gather of the losses.
    Interactions: class weights of the criterion change the losses, and with them the weights: 3 times the loss is a
    third power of the probability. The loss that the model logs is the weighted one; the unweighted loss is logged
    beside it.

    Example:
        >>> FocalWeights(gamma=0.0)(torch.tensor([0.1, 2.0]))
        tensor([1., 1.])
    """

    function = staticmethod(focal_weights)
    problems = ("classes", "binary", "labels")
    family = "easy samples"

    def __init__(self, *, gamma: float = 2.0) -> None:
        super().__init__()
        _check(gamma)
        self.gamma = gamma

    def active(self, *, step: int) -> bool:
        """Return False at a gamma of 0: the criterion is then not touched."""
        return self.gamma > 0

    def forward(self, losses: Tensor) -> Tensor:
        """(N,) losses -> (N,) weights."""
        return focal_weights(losses, gamma=self.gamma)
