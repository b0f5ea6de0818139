"""Nested dropout."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_objectives.kinds import Head
from lightning_objectives.shapes import check_shapes, forms

_FEATURES = {"features": forms("(N, ..., D)")}


def nested_dropout(features: Tensor, head: Callable[[Tensor], Tensor], *, scale: float = 100.0) -> Tensor:
    r"""Compute the head's logits of the first k features, with one random k for the batch.

    .. math::
        z = h(f_1, \dots, f_k, 0, \dots, 0), \qquad P(k) \propto e^{-(k / s)^2}, \quad k = 1, \dots, D

    The features that are kept are not scaled up.

    Args:
        features: (N, ..., D), the input of the head; (N, D, ...) if the head is a convolution.
        head: ``(rows, ..., D) -> (rows, ..., C)``.
        scale: :math:`s > 0`; the larger, the more features are kept.

    Returns:
        (1, N, ..., C) logits.

    Raises:
        ValueError: features of one dimension or none, or a ``scale`` that is not above 0.

    Example:
        >>> head = nn.Linear(3, 2, bias=False)
        >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]))
        >>> nested_dropout(torch.ones(1, 3), head, scale=0.1).detach()  # the first feature alone
        tensor([[[1., 2.]]])

    Paper: Chen et al., Compressing Features for Learning with Noisy Labels, 2022, https://arxiv.org/abs/2206.13140. As
    in its code, one k is drawn for a batch.
    """
    _check(scale)
    check_shapes(_FEATURES, features=features)
    dim = 1 if isinstance(head, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else -1
    kept = _kept(features.shape[dim], scale, features.device).to(features.dtype)
    logits = head(features * (kept.view(-1, *[1] * (features.dim() - 2)) if dim == 1 else kept))
    return logits[None]


def _check(scale: float) -> None:
    if not 0 < scale < math.inf:
        raise ValueError(f"scale={scale} must be > 0 and finite; the authors use 10 or 100.")


def _kept(size: int, scale: float, device: torch.device) -> Tensor:
    """(D,) whether each feature is one of the first k."""
    k = torch.arange(1, size + 1, device=device, dtype=torch.float64)
    # Beside k = 1, so that a small scale leaves one that is not 0.
    up_to = (-(k.square() - 1) / scale / scale).softmax(0).cumsum(0)
    # Feature i, counted from 0, is kept if k > i: where the draw is beyond the probability of k <= i.
    draw = torch.rand((), device=device, dtype=torch.float64)
    return torch.cat([torch.ones_like(k[:1], dtype=torch.bool), draw >= up_to[:-1]])


class NestedDropout(Head):
    """Sorts the features by their use for the classes, so that few of them suffice: against noise in the labels.

    In training the logits are those of :func:`nested_dropout`; evaluation is that of the plain model.

    Args:
        scale: s > 0, about the number of features that are often kept. The authors use 10 for CIFAR-10, and 100 for
            CIFAR-100 and Clothing1M.

    Raises:
        ValueError: a ``scale`` that is not above 0.

    When to use: if some of the labels are wrong, with a network that is large for its data.
    Cost: one product with a mask.
    Interactions: the features that are not among the first few learn slowly. The authors' head has no bias. They
    evaluate every k on a validation set, and use the best one in the test: cut the features for that yourself, as
    ``head(features * (torch.arange(D) < k))``. The evaluation of the plain model uses all features.

    Example:
        >>> NestedDropout(scale=10.0)(torch.ones(2, 5), nn.Linear(5, 3)).shape
        torch.Size([1, 2, 3])

    Differs from the paper: the choice of k for the test, and the second stage, in which two such networks are tuned
    together (co-teaching), are not part of it.
    """

    function = staticmethod(nested_dropout)
    family = "label noise"

    def __init__(self, *, scale: float = 100.0) -> None:
        super().__init__()
        _check(scale)
        self.scale = scale

    def forward(self, features: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, ..., D) features -> (1, N, ..., C) logits; in eval mode those of the plain head."""
        return nested_dropout(features, head, scale=self.scale) if self.training else head(features)[None]
