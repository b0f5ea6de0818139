"""Gaussian noise on the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_objectives.kinds import Perturbation


class WeightNoise(Perturbation):
    r"""Keeps a network from relying on exact weights, by noise on them: :math:`w + \epsilon` in each batch.

    Each weight gets a draw of its own, :math:`\epsilon \sim N(0, \rho^2)`, in each batch. The step is taken from the
    weights as they were, with the gradient at the noisy ones, in a single pass.

    Args:
        rho: the standard deviation, >= 0; at 0 the training is the plain one.

    Raises:
        ValueError: a negative or infinite ``rho``.

    When to use: against overfitting of recurrent networks, where dropout hurts. 0.075 is cited as the paper's value; it
    was not checked at the source.
    Cost: one draw for each weight, and one copy of the weights.
    Interactions: what the step logs is the loss at the noisy weights. BatchNorm's statistics are those of the noisy
    network too.

    Example:
        >>> noise = WeightNoise(rho=0.1).offsets({}, {"w": torch.zeros(4)}, generator=torch.Generator().manual_seed(0))
        >>> noise["w"].abs().max() < 0.5
        tensor(True)

    Paper: Graves, Mohamed and Hinton, Speech Recognition with Deep Recurrent Neural Networks, ICASSP 2013, section 4,
    https://arxiv.org/abs/1303.5778.

    Differs from the paper: a draw for each batch; the paper draws for each training sequence.
    """

    uses_gradients = False

    def __init__(self, *, rho: float = 0.075) -> None:
        if not 0 <= rho < float("inf"):
            raise ValueError(f"rho={rho} must be finite and >= 0; 0 moves nothing.")
        self.rho = rho

    def active(self, *, step: int) -> bool:
        """Return False at ``rho=0``."""
        return self.rho > 0

    def offsets(
        self,
        gradients: Mapping[str, Tensor],
        params: Mapping[str, Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Draw the noise."""
        noise = {name: torch.empty_like(param, requires_grad=False) for name, param in params.items()}
        return {name: offset.normal_(0, self.rho, generator=generator) for name, offset in noise.items()}
