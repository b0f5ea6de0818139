"""Multi-sample dropout."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Head


def multi_sample_dropout(
    features: Tensor, head: Callable[[Tensor], Tensor], *, num_samples: int = 8, p: float = 0.3
) -> Tensor:
    r"""The head's logits under M independent dropout masks on the same features.

    .. math::
        z_m = h\left(\frac{\mathrm{mask}_m \odot f}{1 - p}\right), \qquad
        L = \frac{1}{M} \sum_{m=1}^{M} \ell(z_m, y)

    The mean is that of the losses, not of the logits, whose loss is smaller (cross entropy is convex).

    Args:
        features: (N, ..., D) what the head is given.
        head: ``(rows, ..., D) -> (rows, ..., C)``, with the same weights for every sample.
        num_samples: M; one is ordinary dropout, bit by bit.
        p: the share of the features that is dropped, in [0, 1).

    Returns:
        (M, N, ..., C) logits.

    Example:
        >>> import torch
        >>> multi_sample_dropout(torch.ones(4, 5), torch.nn.Linear(5, 3), num_samples=2).shape
        torch.Size([2, 4, 3])

    Paper: Inoue, Multi-Sample Dropout for Accelerated Training and Better Generalization, 2019,
    https://arxiv.org/abs/1905.09788.
    """
    # one call on M * N rows, one draw: row m * N + n is sample m of row n; the M copies are made by the dropout itself
    copies = features.expand(num_samples, *features.shape)
    short = num_samples > 1 and features.device.type == "cpu" and 0 < p < 1
    logits = head((_short_dropout(copies, p) if short else F.dropout(copies, p)).flatten(0, 1))
    return logits.view(num_samples, len(features), *logits.shape[1:])


def _short_dropout(features: Tensor, p: float) -> Tensor:
    """Dropout by 31 random bits a feature, which gives ``p`` to within 2⁻³¹.

    Torch's own draws 64 of them, also one feature after the other in one thread, and takes four times as long, but on
    Intel's CPUs, where MKL draws for it.
    """
    draw = torch.empty_like(features, dtype=torch.int32).random_()  # all of [0, 2³¹)
    # a mask of the features' type is multiplied with in a fraction of the time of a bool one, forward and backward
    return features * (draw >= int(p * 2**31)).to(features.dtype).div_(1 - p)


class MultiSampleDropout(Head):
    """Module form of :func:`multi_sample_dropout`, for training; evaluation is the plain model's.

    **The method is patented** (US 11,630,988 B2); whoever uses it commercially should know.

    Args:
        num_samples: M >= 1, the masks a step; the paper sees little gain beyond 8.
        p: the share of the features that is dropped, in [0, 1); 0 is the plain model. The paper's best is 0.3.

    Raises:
        ValueError: ``num_samples`` below 1, or ``p`` outside [0, 1).

    When to use: nets that gain from dropout before the head; fewer steps to the same loss are claimed.
    Cost: the head M times, forward and backward; nothing for the backbone.
    Interactions: where the network has no dropout before its head, this adds it, which is two changes at once. The
    network's own dropout in front of the head stays; set it to 0. A head with BatchNorm is refused.

    Example:
        >>> import torch
        >>> MultiSampleDropout(num_samples=4, p=0.5)(torch.ones(2, 5), torch.nn.Linear(5, 3)).shape
        torch.Size([4, 2, 3])
    """

    function = staticmethod(multi_sample_dropout)
    by_process = "each process draws masks of its own"

    def __init__(self, *, num_samples: int = 8, p: float = 0.3) -> None:
        super().__init__()
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1.")
        if not 0 <= p < 1:
            raise ValueError(f"p={p} must be in [0, 1).")
        self.num_samples = num_samples
        self.p = p

    def active(self, *, step: int) -> bool:
        """False at ``p=0``, where all stacks are the plain head's."""
        return self.p > 0

    def forward(self, features: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, ..., D) features -> (M, N, ..., C) logits; in eval mode all of them the plain head's."""
        return multi_sample_dropout(features, head, num_samples=self.num_samples, p=self.p if self.training else 0.0)
