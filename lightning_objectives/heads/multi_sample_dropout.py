"""Multi-sample dropout."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Head
from lightning_objectives.shapes import check_shapes, forms

_FEATURES = {"features": forms("(N, ..., D)")}


def multi_sample_dropout(
    features: Tensor, head: Callable[[Tensor], Tensor], *, num_samples: int = 8, p: float = 0.3
) -> Tensor:
    r"""Compute the head's logits under M independent dropout masks on the same features.

    .. math::
        z_m = h\left(\frac{\mathrm{mask}_m \odot f}{1 - p}\right), \qquad
        L = \frac{1}{M} \sum_{m=1}^{M} \ell(z_m, y)

    Average the losses, not the logits: the loss of the mean logits is smaller (cross entropy is convex).

    Args:
        features: (N, ..., D), the input of the head.
        head: ``(rows, ..., D) -> (rows, ..., C)``, with the same weights for every sample.
        num_samples: M; one is ordinary dropout, bit for bit.
        p: the share of the features that is dropped, in [0, 1).

    Returns:
        (M, N, ..., C) logits.

    Raises:
        ValueError: features of one dimension or none, ``num_samples`` below 1, or ``p`` outside [0, 1).

    Example:
        >>> import torch
        >>> multi_sample_dropout(torch.ones(4, 5), torch.nn.Linear(5, 3), num_samples=2).shape
        torch.Size([2, 4, 3])

    Paper: Inoue, Multi-Sample Dropout for Accelerated Training and Better Generalization, 2019,
    https://arxiv.org/abs/1905.09788.
    """
    _check(num_samples, p)
    check_shapes(_FEATURES, features=features)
    # One draw and one call of the head, on M * N rows: row m * N + n is sample m of row n.
    logits = head(_dropped(features, num_samples, p).flatten(0, 1))
    return logits.view(num_samples, len(features), *logits.shape[1:])


def _dropped(features: Tensor, num_samples: int, p: float) -> Tensor:
    """(M, N, ..., D) the features under M masks. `expand` copies nothing; the dropout itself writes the M copies."""
    copies = features.expand(num_samples, *features.shape)
    short = num_samples > 1 and features.device.type == "cpu" and 0 < p < 1
    return _short_dropout(copies, p) if short else F.dropout(copies, p)


def _check(num_samples: int, p: float) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1.")
    if not 0 <= p < 1:
        raise ValueError(f"p={p} must be in [0, 1).")


def _short_dropout(features: Tensor, p: float) -> Tensor:
    """Apply dropout by 31 random bits per feature, which gives ``p`` to within 2⁻³¹.

    Torch's own dropout draws 64 bits per feature, also one feature after the other in one thread. It takes four times
    as long, except on Intel's CPUs, where MKL draws for it.
    """
    draw = torch.empty_like(features, dtype=torch.int32).random_()  # all of [0, 2³¹)
    # A product with a mask of the features' type takes a fraction of the time of one with a bool mask, both ways.
    return features * (draw >= int(p * 2**31)).to(features.dtype).div_(1 - p)


class MultiSampleDropout(Head):
    """Trains the head on several dropout masks of the same features at once, to need fewer steps (as the paper claims).

    In training the logits are those of :func:`multi_sample_dropout`; evaluation is that of the plain model.

    **The method is patented** (US 11,630,988 B2), which you should know if you use it commercially.

    Args:
        num_samples: M >= 1, the number of masks per step; the paper sees little gain beyond 8.
        p: the share of the features that is dropped, in [0, 1); 0 is the plain model. The paper's best is 0.3.

    Raises:
        ValueError: ``num_samples`` below 1, or ``p`` outside [0, 1).

    When to use: with networks that gain from dropout before the head. The paper claims fewer steps to the same loss.
    Cost: M forward and backward passes through the head; nothing for the backbone. From 4 million logits in a stack on,
    a linear head computes the stacks one after the other, and each again in the backward pass, to save memory.
    Interactions: if the network has no dropout before its head, this adds it, so you change two things at once. The
    network's own dropout in front of the head stays; set it to 0. A head with BatchNorm is refused.

    Example:
        >>> import torch
        >>> MultiSampleDropout(num_samples=4, p=0.5)(torch.ones(2, 5), torch.nn.Linear(5, 3)).shape
        torch.Size([4, 2, 3])
    """

    exemplar = True
    function = staticmethod(multi_sample_dropout)
    by_process = "each process draws masks of its own"

    def __init__(self, *, num_samples: int = 8, p: float = 0.3) -> None:
        super().__init__()
        _check(num_samples, p)
        self.num_samples = num_samples
        self.p = p

    def active(self, *, step: int) -> bool:
        """Return False at ``p=0``, where all stacks are the plain head's logits."""
        return self.p > 0

    def forward(self, features: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, ..., D) features -> (M, N, ..., C) logits; in eval mode each stack holds the plain head's."""
        return multi_sample_dropout(features, head, num_samples=self.num_samples, p=self.p if self.training else 0.0)

    def stacked_features(self, features: Tensor) -> Tensor:
        """(N, ..., D) features -> (M, N, ..., D) under M masks."""
        check_shapes(_FEATURES, features=features)
        return _dropped(features, self.num_samples, self.p if self.training else 0.0)
