"""The penalty on the log of softmax's normaliser, known as z-loss."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_shapes


def log_partition_penalty(logits: Tensor) -> Tensor:
    r"""Compute the squared log-normaliser of the softmax, :math:`\left(\log \sum_k e^{z_k}\right)^2`.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.

    Returns:
        (N,) terms >= 0.

    Raises:
        ValueError: logits of another shape.

    Example:
        >>> log_partition_penalty(torch.tensor([[0.0, 0.0], [3.0, 1.0]]))  # (log 2)² and 3.1269²
        tensor([0.4805, 9.7777])

    Paper: Wortsman et al., Small-scale Proxies for Large-scale Transformer Training Instabilities, ICLR 2024,
    https://arxiv.org/abs/2309.14322.
    """
    check_shapes(logits=logits)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(1).square()


class LogPartitionPenalty(Regularizer):
    """Keeps logits from drifting away, by a penalty on the log of softmax's normaliser (z-loss).

    The terms are those of :func:`log_partition_penalty`. The callback multiplies them by 1e-4, the
    paper's factor, if you give no ``strength``.

    When to use: in trainings at a high learning rate, if the logits drift away so far that their differences are lost
    in a short float type.
    Cost: none to speak of.
    Interactions: a constant added to all logits changes only this term, so it holds the level of the logits and hardly
    their differences. If a model gives log-probabilities to ``nll_loss``, the normaliser is 1 already and this does
    nothing: let it give the logits to ``cross_entropy``. If the logits are in bfloat16, so is the sum of the two
    gradients, which may round a term of 1e-4 away: give the criterion ``logits.float()``.

    Example:
        >>> LogPartitionPenalty()(torch.zeros(1, 2))
        tensor([0.4805])
    """

    function = staticmethod(log_partition_penalty)
    family = "numerical stability"
    problems = ("classes",)
    default_strength = 1e-4

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N,) terms."""
        return log_partition_penalty(logits)
