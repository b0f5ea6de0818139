"""Dynamic fine-tuning."""

from typing import ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import log_probabilities, of_target


def dynamic_fine_tuning_loss(logits: Tensor, target: Tensor) -> Tensor:
    r"""Compute a cross entropy that counts as much as the network already believes in the target.

    .. math::
        \ell = -\operatorname{sg}(p_y) \log p_y

    with sg a constant for the gradient, which is therefore that of :math:`-p_y`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.

    Returns:
        (N,) losses; 0 for a target whose logit is -inf.

    Raises:
        ValueError: shapes that do not fit, or fewer than two classes.

    Example:
        >>> import torch
        >>> dynamic_fine_tuning_loss(torch.zeros(1, 2), torch.tensor([0]))  # log(2) / 2
        tensor([0.3466])

    Paper: Wu et al., On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification,
    2025, https://arxiv.org/abs/2508.05629. Not checked at the source: the number of the equation.
    """
    return of_target(_believed_losses, target, log_probabilities(logits, target))


def _believed_losses(log_p: Tensor) -> Tensor:
    """The losses of targets with these log-probabilities."""
    # 0 * inf is NaN, so a probability of 0 needs a finite logarithm.
    return -log_p.exp().detach() * log_p.clamp_min(torch.finfo(log_p.dtype).min)


class DynamicFineTuningLoss(Loss):
    r"""Fine-tunes without the huge gradients of targets that the model thinks impossible.

    The losses are those of :func:`dynamic_fine_tuning_loss`.

    When to use: supervised fine-tuning of a language model that already knows much of the task. Where the model is
    weak, keep cross entropy.
    Cost: that of cross entropy.
    Interactions: the gradient is that of ``ProbabilityPowerLoss(power=1.0)``, but the logged value is another one. The
    value need not fall as the model improves: it is highest at :math:`p_y = 1 / e`. The model may drift far from where
    it started, which :class:`AnchoredSFTLoss` prevents. Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> DynamicFineTuningLoss()(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.3466])
    """

    function = staticmethod(dynamic_fine_tuning_loss)
    family = "fine-tuning"
    problems = ("classes",)
    unkept_laws: ClassVar = {
        "the_gradient_is_that_of_finite_differences": "the probability is a constant for the gradient"
    }

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return dynamic_fine_tuning_loss(logits, target)
