"""Confidence penalty."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_classes, check_shapes


def confidence_penalty(logits: Tensor, *, threshold: float | None = None) -> Tensor:
    r"""Compute a penalty that is high where the network is sure: the negative entropy of its prediction.

    .. math::
        -H(p) = \sum_k p_k \log p_k \quad \text{or, with a threshold,} \quad \max(0, \Gamma - H(p))

    with p the softmax.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        threshold: :math:`\Gamma \ge 0`, the entropy in nats from which on nothing is added; None for the first form.

    Returns:
        (N,) terms: in :math:`[-\log C, 0]` without a threshold, else in :math:`[0, \Gamma]`.

    Raises:
        ValueError: shapes that do not fit, a single class, or a negative or infinite ``threshold``.

    Example:
        >>> confidence_penalty(torch.zeros(1, 2))  # -log 2
        tensor([-0.6931])
        >>> confidence_penalty(torch.zeros(1, 2), threshold=1.0)  # 1 - log 2
        tensor([0.3069])

    Paper: Pereyra et al., Regularizing Neural Networks by Penalizing Confident Output Distributions, ICLR workshop
    2017, section 3, https://arxiv.org/abs/1701.06548.
    """
    _check(threshold)
    check_shapes(logits=logits)
    check_classes(logits)
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    negative_entropy = (log_p.exp() * log_p).sum(1)
    return negative_entropy if threshold is None else (threshold + negative_entropy).relu()


def _check(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold < float("inf"):
        raise ValueError(
            f"threshold={threshold} must be finite and >= 0; 0 adds nothing, and None penalizes at any entropy."
        )


class ConfidencePenalty(Regularizer):
    r"""Keeps a network from being too sure: penalizes predictions of low entropy.

    The terms are those of :func:`confidence_penalty`. The callback multiplies them by 0.1 if you give no ``strength``.

    Args:
        threshold: :math:`\Gamma`, the entropy in nats from which on nothing is added, in [0, log C]; None penalizes at
            any entropy.

    Raises:
        ValueError: a negative or infinite ``threshold``.

    When to use: if the network overfits with probabilities close to 1, as an alternative to label smoothing that lets
    the network choose which other classes are likely. Set a threshold if the penalty slows down the early training.
    Cost: a softmax of the logits.
    Interactions: it acts as label smoothing does, so use one of them. The network becomes less confident; look at the
    calibration. Without a threshold the logged term is negative.

    Example:
        >>> ConfidencePenalty()(torch.zeros(1, 2))  # -log 2
        tensor([-0.6931])

    Paper: see :func:`confidence_penalty`.
    """

    exemplar = True
    function = staticmethod(confidence_penalty)
    family = "overconfidence"
    problems = ("classes",)
    default_strength = 0.1

    def __init__(self, *, threshold: float | None = None) -> None:
        super().__init__()
        _check(threshold)
        self.threshold = threshold

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N,) terms."""
        return confidence_penalty(logits, threshold=self.threshold)
