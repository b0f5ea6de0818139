"""Supervised fine-tuning by an f-divergence."""

from typing import Any, ClassVar, Literal

from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import log_probabilities, of_target, wide
from lightning_objectives.shapes import check_shapes

Divergence = Literal["pearson", "hellinger"]
_LEAST = -1e30
"""A finite logarithm for classes that a network rules out: inf - inf is NaN."""
_BEND = -0.5
"""The reward below which the Hellinger loss goes on along its tangent, long before its pole at -1."""


def f_divergence_sft_loss(
    logits: Tensor, target: Tensor, reference_logits: Tensor, *, beta: float, divergence: Divergence = "pearson"
) -> Tensor:
    r"""Compute a loss of the implicit reward of the target: how much more probable it became than in the reference.

    .. math::
        \ell = f^*(-r), \qquad r = \beta \log \frac{p_y}{p^{\text{ref}}_y}

    with the conjugate of a divergence: :math:`f^*(t) = t + t^2 / 4` for Pearson's :math:`\chi^2`, and
    :math:`f^*(t) = t / (1 - t)` for the squared Hellinger distance. At the reference its gradient is that of cross
    entropy times :math:`\beta`; the Pearson loss is least at :math:`r = 2`, and pulls back beyond it.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.
        reference_logits: (N, C) those of the reference, without gradient.
        beta: :math:`\beta > 0`: the smaller, the farther from the reference a target may go. For small
            :math:`\beta` the Pearson loss is :math:`\beta` times cross entropy, less the reference's.
        divergence: ``pearson`` or ``hellinger``.

    Returns:
        (N,) losses, 0 at the reference; -1 is the least. Infinite where the network alone rules the target out.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> import torch
        >>> logits, reference = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log()
        >>> f_divergence_sft_loss(logits, torch.tensor([0]), reference, beta=1.0)  # r = log 2: log(2)² / 4 - log 2
        tensor([-0.5730])

    Paper: Wang et al., Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections, 2025,
    https://arxiv.org/abs/2507.00018. Not checked at the source: the equations of the paper, and its :math:`\beta`. The
    slopes are those of inverse soft Q-learning, from whose authors' code they were checked: 1 / (1 + r)² for Hellinger.

    Differs from the paper: the reward of each token has no difference of values, :math:`V(s) - V(s')`, which would need
    the network's logits to be Q-values. Below :math:`r = -1/2` the Hellinger loss goes on along its tangent, because
    its formula has a pole at -1 and falls beyond it.
    """
    _check(beta, divergence)
    check_shapes(logits=logits, target=target, reference_logits=reference_logits)
    own, reference = log_probabilities(logits, target), wide(reference_logits.detach()).log_softmax(1)
    loss = _pearson if divergence == "pearson" else _hellinger

    def of_class(own: Tensor, reference: Tensor) -> Tensor:
        return loss(beta * (own.clamp_min(_LEAST) - reference.clamp_min(_LEAST)))

    return of_target(of_class, target, own, reference)


def _pearson(reward: Tensor) -> Tensor:
    return reward.square() / 4 - reward


def _hellinger(reward: Tensor) -> Tensor:
    inside = reward.clamp_min(_BEND)
    return 1 / (1 + inside) - 1 - (reward - inside) / (1 + _BEND) ** 2


def _check(beta: float, divergence: str) -> None:
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta={beta} must be > 0 and finite: at 0 the loss is 0 whatever the network says.")
    if divergence not in ("pearson", "hellinger"):
        raise ValueError(f"divergence={divergence!r} must be 'pearson' or 'hellinger'.")


class FDivergenceSFTLoss(Loss):
    r"""Fine-tunes without forgetting where the model started: each target is pulled up only so far.

    The losses are those of :func:`f_divergence_sft_loss`.

    Args:
        beta: :math:`\beta > 0`. With ``pearson`` a target's probability is pulled to :math:`e^{2 / \beta}` times that
            of the reference, and held there.
        divergence: ``pearson``, or ``hellinger``, which pulls ever more weakly but never back.

    Raises:
        ValueError: a setting outside its range.

    When to use: with :class:`Refer` beside it, for supervised fine-tuning before preference training (DPO), where cross
    entropy alone drifts far away. The paper's other remedy needs no loss: a lower learning rate.
    Cost: the reference's forward pass and its weights; ``Refer(network=..., cache=...)`` saves the pass from the second
    epoch on.
    Interactions: the gradient begins as that of cross entropy times :math:`\beta`, so a small ``beta`` needs a greater
    learning rate. The logged value is 0 at the start and negative afterwards, and no perplexity. With dropout the
    network differs from the reference from the start, because the reference has none. Class weights of the replaced
    criterion are lost.

    Example:
        >>> import torch
        >>> FDivergenceSFTLoss(beta=1.0)(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2))  # at the reference
        tensor([0.])
    """

    function = staticmethod(f_divergence_sft_loss)
    family = "fine-tuning"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"beta": 0.5}

    def __init__(self, *, beta: float, divergence: Divergence = "pearson") -> None:
        super().__init__()
        _check(beta, divergence)
        self.beta = beta
        self.divergence: Divergence = divergence

    def forward(self, logits: Tensor, target: Tensor, reference_logits: Tensor) -> Tensor:
        """(N, C) logits, (N,) classes or (N, C) probabilities, and (N, C) logits of the reference -> (N,) losses."""
        return f_divergence_sft_loss(logits, target, reference_logits, beta=self.beta, divergence=self.divergence)
