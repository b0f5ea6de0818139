"""R-Drop: two passes with other dropout masks shall agree."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_shapes


def symmetric_kl(logits: Tensor, other_logits: Tensor) -> Tensor:
    r"""Compute how much the predictions of two passes differ, as the mean of both Kullback-Leibler divergences.

    .. math::
        \frac{1}{2} \left( D_{KL}(p \| q) + D_{KL}(q \| p) \right)
        = \frac{1}{2} \sum_k (p_k - q_k)(\log p_k - \log q_k)

    with the softmax probabilities p and q of the two passes. The gradient flows through both.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        other_logits: (N, C) of the other pass. A class that is -inf in both passes counts 0.

    Returns:
        (N,) divergences >= 0.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> symmetric_kl(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([[1.5, 1.2, 0.3]]))
        tensor([0.0593])
    """
    check_shapes(logits=logits)
    if other_logits.shape != logits.shape:
        raise ValueError(
            f"other_logits of the shape {tuple(other_logits.shape)} do not fit logits of the shape "
            f"{tuple(logits.shape)}: both passes must have the same shape."
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    first, second = logits.to(wide).log_softmax(1), other_logits.to(wide).log_softmax(1)
    impossible = first.isneginf() & second.isneginf()
    first, second = first.masked_fill(impossible, 0.0), second.masked_fill(impossible, 0.0)
    return ((first.exp() - second.exp()) * (first - second)).sum(1) / 2


def r_drop(logits: Tensor, inputs: Tensor, again: Callable[..., Tensor]) -> Tensor:
    """Compute how much a second pass over the same inputs disagrees with the first, by :func:`symmetric_kl`.

    Args:
        logits: (N, C) of the first pass.
        inputs: the inputs of the network.
        again: calls the network once more, ``again(inputs)`` -> (N, C), with other dropout masks.

    Returns:
        (N,) divergences >= 0.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> r_drop(torch.zeros(1, 2), torch.ones(1, 3), again=lambda inputs: torch.tensor([[0.0, 2.0]]))  # tanh(1) / 2
        tensor([0.3808])
    """
    check_shapes(inputs=inputs)
    return symmetric_kl(logits, again(inputs))


class RDrop(Regularizer):
    r"""Makes the predictions of two passes with different dropout masks agree.

    The terms are those of :func:`r_drop`. The paper's factor :math:`\alpha` is the callback's ``strength``. The paper
    adds the losses of both passes and the term; beside the one loss of your model the same balance is
    :math:`\alpha / 2`. The paper's factors differ by task (5 for translation, 0.3 for image classification), and parts
    of its code sum where others average, so choose one.

    When to use: in trainings with dropout, above all when a pretrained network is adapted to few data.
    Cost: one more forward and backward pass through the network in each step.
    Interactions: without dropout, or other draws inside the network, the term is 0. BatchNorm normalises each pass by
    itself, and keeps the statistics of the first. Rows whose target is ignored do not count.

    Example:
        >>> RDrop()(torch.zeros(1, 2), torch.ones(1, 3), lambda inputs: torch.tensor([[0.0, 2.0]]))
        tensor([0.3808])

    Paper: Liang et al., R-Drop: Regularized Dropout for Neural Networks, NeurIPS 2021, equation 2,
    https://arxiv.org/abs/2106.14448.

    Differs from the paper: the loss of the second pass is not added, whose expected value is that of the first.
    """

    function = staticmethod(r_drop)
    family = "overfitting"
    problems = ("classes",)

    def forward(self, logits: Tensor, inputs: Tensor, again: Callable[..., Tensor]) -> Tensor:
        """(N, C) logits, the inputs, and a second pass over them -> (N,) terms."""
        return r_drop(logits, inputs, again)
