"""Poly-1 loss."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import log_probabilities, of_target


def poly_loss(logits: Tensor, target: Tensor, *, epsilon: float = 2.0) -> Tensor:
    r"""Compute the cross entropy with another first coefficient of its expansion in powers of :math:`1 - p_y`.

    .. math::
        \ell = -\log p_y + \varepsilon (1 - p_y), \qquad -\log p_y = \sum_{j \ge 1} \frac{(1 - p_y)^j}{j}

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.
        epsilon: :math:`\varepsilon \ge -1`; 0 is cross entropy, and -1 takes the first power away.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or an ``epsilon`` below -1.

    Example:
        >>> import torch
        >>> poly_loss(torch.zeros(1, 2), torch.tensor([0]))  # log 2 + 2 / 2
        tensor([1.6931])

    Paper: Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, ICLR 2022,
    https://arxiv.org/abs/2204.12511.
    """
    _check(epsilon)
    return of_target(lambda x: -x - epsilon * torch.expm1(x), target, log_probabilities(logits, target))


def _check(epsilon: float) -> None:
    if not -1 <= epsilon < float("inf"):
        raise ValueError(f"epsilon={epsilon} must be >= -1 and finite, or the loss would rise as p nears 1; 0 is CE.")


class PolyLoss(Loss):
    r"""Tunes cross entropy to a task by one number: how much the samples count that are nearly right.

    The losses are those of :func:`poly_loss`.

    Args:
        epsilon: :math:`\varepsilon`. The best value depends on the task, so try several.

    Raises:
        ValueError: an ``epsilon`` below -1.

    When to use: as a tuned replacement of cross entropy. The values cited for the paper, which we did not check, are 2
    for ImageNet and -1 for detection and segmentation; there is no value for all tasks.
    Cost: that of cross entropy.
    Interactions: a positive ``epsilon`` makes the probabilities sharper than the true ones (0.82 where 0.7 is true,
    at 2). Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> PolyLoss(epsilon=0.0)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(poly_loss)
    family = "tuned cross entropy"
    problems = ("classes",)

    def __init__(self, *, epsilon: float = 2.0) -> None:
        super().__init__()
        _check(epsilon)
        self.epsilon = epsilon

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return poly_loss(logits, target, epsilon=self.epsilon)
