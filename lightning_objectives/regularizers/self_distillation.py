"""Progressive self-knowledge distillation (PS-KD)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Regularizer, Row
from lightning_objectives.shapes import check_classes, check_shapes, forms

_FORMS = {"past_logits": forms("(N, C) float"), "seen": forms("(N,) float")}


def past_cross_entropy(logits: Tensor, past_logits: Tensor, seen: Tensor) -> Tensor:
    r"""Compute the cross entropy between what the network predicted before and what it predicts now.

    .. math::
        -s \sum_k p^{t-1}_k \log p^t_k

    with :math:`p^{t-1}` and :math:`p^t` the softmax of the past and the present logits, and s 1 for a sample that has
    come before, else 0.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        past_logits: (N, C) of the same samples, from the epoch before; without gradient.
        seen: (N,) 1 for samples that have past logits, 0 for samples that come for the first time.

    Returns:
        (N,) terms >= 0.

    Raises:
        ValueError: shapes that do not fit, or a single class.

    Example:
        >>> past_cross_entropy(torch.zeros(2, 2), torch.tensor([[3.0, 1.0]] * 2), torch.tensor([1.0, 0.0]))  # log 2, 0
        tensor([0.6931, 0.0000])
    """
    check_shapes(_FORMS, logits=logits, past_logits=past_logits, seen=seen)
    check_classes(logits)
    past_p = past_logits.detach().to(torch.promote_types(past_logits.dtype, torch.float32)).softmax(1)
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    return -seen.detach() * (past_p * log_p).sum(1)


class SelfDistillation(Regularizer):
    r"""Makes a network its own teacher: holds each prediction to that of the epoch before.

    The terms are those of :func:`past_cross_entropy`. Each sample keeps its last logits, and a mark that it has come;
    before that it adds nothing.

    When to use: if the labels are hard and the network overfits or is too sure, and no teacher is at hand. For the
    paper's schedule give :math:`\alpha_T = 0.8` as
    ``AddRegularizer(SelfDistillation(), strength=lambda progress: 0.8 * progress / (1 - 0.8 * progress))``.
    Cost: C + 1 numbers in float32 for each sample of the data set, on the device and in each checkpoint: 20 MB for
    50,000 samples of 100 classes, 5 GB for ImageNet.
    Interactions: wrap the data set with ``with_index``. The first epoch is that of the plain model. The past logits
    are those of the training mode, with the augmentation of their epoch. Not with mixed samples.

    Example:
        >>> method = SelfDistillation()
        >>> memory = {"past_logits": torch.zeros(1, 2), "seen": torch.zeros(1)}
        >>> method(torch.zeros(1, 2), memory)
        tensor([0.])
        >>> method(torch.zeros(1, 2), method.learn(torch.zeros(1, 2), memory))  # log 2
        tensor([0.6931])

    Paper: Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021,
    https://arxiv.org/abs/2006.12000.

    Differs from the paper: its targets are the mixture :math:`(1 - \alpha_t) y + \alpha_t p^{t-1}`, with
    :math:`\alpha_t = \alpha_T t / T` in epoch t of T. With the cross entropy as the model's own loss, that is
    :math:`1 - \alpha_t` times "loss + strength · term", where the strength is :math:`\alpha_t / (1 - \alpha_t)`. The
    factor before it scales the whole gradient, like a learning rate that falls to :math:`1 - \alpha_T` of its own. The
    progress grows with each step, and :math:`\alpha_t` with each epoch. The default strength is 1 in all epochs:
    targets that are half the label and half the past prediction.
    """

    family = "overconfidence"
    problems = ("classes",)
    remembers: ClassVar = {"past_logits": Row(("C",)), "seen": Row()}

    def forward(self, logits: Tensor, memory: Mapping[str, Tensor]) -> Tensor:
        """(N, C) logits and those of the epoch before -> (N,) terms."""
        return past_cross_entropy(logits, memory["past_logits"], memory["seen"])

    def learn(self, logits: Tensor, memory: Mapping[str, Any]) -> dict[str, Tensor]:
        """The logits of this step, and that the samples have come."""
        return {"past_logits": logits.detach().float(), "seen": torch.ones_like(memory["seen"])}
