"""DRRho: distributionally robust weights of the losses in excess of a reference's."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes


def excess_loss_weights(losses: Tensor, reference_losses: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Compute weights that grow with how much worse than a reference the network does on a sample.

    .. math::
        w_i = N \operatorname{softmax}_i \left( \frac{\ell_i - \ell_i^{\text{ref}}}{\tau} \right)

    These are the weights of the gradient of the robust risk
    :math:`\tau \log \frac1N \sum_i \exp((\ell_i - \ell_i^{\text{ref}}) / \tau)`.

    Args:
        losses: (N,) the losses of the samples of the whole batch, across all ranks.
        reference_losses: (N,) those of the reference.
        temperature: :math:`\tau > 0`. The lower, the more the largest excess counts; infinity gives weights of 1.

    Returns:
        (N,) weights with mean 1, float32 at least, without gradient. A sample whose excess is not finite gets the
        weight 0. If none is finite, every weight is 1.

    Raises:
        ValueError: losses of another shape, or a ``temperature`` that is not above 0.

    Example:
        >>> import torch
        >>> excess_loss_weights(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 - 3.0**0.5]))
        tensor([0.3007, 1.6993])

    Paper: Wei et al., Model Steering: Learning with a Reference Model Improves Generalization Bounds and Scaling Laws,
    ICML 2025, https://arxiv.org/abs/2505.06699, the KL-regularized risk. Not checked at the source: the equation, and
    the paper's temperatures.

    Differs from the paper: the normalization is that of the batch, without a moving average over batches.
    """
    check_shapes(losses=losses, reference_losses=reference_losses)
    _check(temperature)
    excess = (losses - reference_losses).detach()
    excess = excess.to(torch.promote_types(excess.dtype, torch.float32)) / temperature
    finite = excess.isfinite()
    shares = torch.where(finite, excess, -torch.inf).softmax(0)
    return torch.where(finite.any(), shares.nan_to_num(0.0) * len(excess), torch.ones_like(excess))


def _check(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be > 0; infinity gives all samples the same weight.")


class DRRho(Weighting):
    r"""Trains most on the samples where the network is worse than a trained reference: learnable, and not yet learnt.

    A sample on which the reference fails too, such as one with a wrong label, counts little. The weights are those of
    :func:`excess_loss_weights`.

    Args:
        temperature: :math:`\tau`, in units of the loss.

    Raises:
        ValueError: a ``temperature`` that is not above 0.

    When to use: with ``Refer(network=...)`` beside it, if there is a network that was trained well on such data.
    Cost: the reference's forward pass, or none with ``Refer(cache=...)`` from the second epoch on; one all-gather.
    Interactions: use large batches. A reference that has seen the training data has losses near 0 on it, so that hard
    samples dominate.

    Example:
        >>> import torch
        >>> DRRho(temperature=float("inf"))(torch.tensor([1.0, 5.0]), torch.tensor([0.5, 0.5]))
        tensor([1., 1.])
    """

    function = staticmethod(excess_loss_weights)
    family = "distribution shift"

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        _check(temperature)
        self.temperature = temperature

    def forward(self, losses: Tensor, reference_losses: Tensor) -> Tensor:
        """(N,) losses, and those of the reference -> (N,) weights."""
        return excess_loss_weights(losses, reference_losses, temperature=self.temperature)
