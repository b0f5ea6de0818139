"""Spectral decoupling."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_shapes


def spectral_decoupling(logits: Tensor) -> Tensor:
    r"""Compute half the squared norm of the logits, :math:`\frac{1}{2} \sum_k z_k^2`.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.

    Returns:
        (N,) terms >= 0.

    Raises:
        ValueError: logits of another shape.

    Example:
        >>> spectral_decoupling(torch.tensor([[1.0, -3.0]]))
        tensor([5.])

    Paper: Pezeshki et al., Gradient Starvation: A Learning Proclivity in Neural Networks, NeurIPS 2021,
    https://arxiv.org/abs/2011.09468.

    Differs from the paper: its second form, with an offset and a strength for each class, is not here.
    """
    check_shapes(logits=logits)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).square().sum(1) / 2


class SpectralDecoupling(Regularizer):
    """Keeps a feature that is easy to learn from hiding others, by a penalty on the squared logits.

    The terms are those of :func:`spectral_decoupling`. The paper's factor is the callback's ``strength``; the
    method has no value of its own, so choose one.

    When to use: if a feature that is easy to learn hides others that would generalise (spurious correlations, unknown
    groups). Use it in place of weight decay, as the paper does, not beside it.
    Cost: none.
    Interactions: the logits stay small, so the network is less sure of itself; look at the calibration. The sum runs
    over the classes, so many classes need a smaller strength.

    Example:
        >>> SpectralDecoupling()(torch.tensor([[1.0, -3.0]]))
        tensor([5.])
    """

    function = staticmethod(spectral_decoupling)
    family = "spurious features"

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N,) terms."""
        return spectral_decoupling(logits)
