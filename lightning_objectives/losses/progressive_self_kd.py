"""Progressive self-knowledge distillation: soft targets from what the network predicted an epoch ago."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Loss, Row
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"predictions": forms("(N, C) float")}


def progressive_self_kd_loss(logits: Tensor, target: Tensor, predictions: Tensor, *, alpha: float = 0.8) -> Tensor:
    r"""Compute a cross entropy with targets that are softened by earlier predictions of the network itself.

    .. math::
        \ell = -\sum_k \left( (1 - \alpha) y_k + \alpha q_k \right) \log p_k

    with y the target, p the softmax of the logits, and q an earlier softmax for the same sample. Where q is all zeros,
    there is no earlier one, and the loss is the cross entropy with y.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        target: (N,) int classes, or (N, C) probabilities.
        predictions: (N, C) q, without gradient.
        alpha: :math:`\alpha`, in [0, 1]; 0 is cross entropy.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, or an ``alpha`` outside [0, 1].

    Example:
        >>> q = torch.tensor([[0.5, 0.5], [0.0, 0.0]])  # the second has not come yet
        >>> progressive_self_kd_loss(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]), q, alpha=0.4)
        tensor([0.5133, 0.3133])

    Paper: Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021, equations 5 and 6,
    https://arxiv.org/abs/2006.12000. The equations' numbers were not checked at the source.
    """
    check_shapes(_FORMS, logits=logits, target=target, predictions=predictions)
    _check(alpha)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    hard = (
        target.to(logits.dtype) if target.is_floating_point() else F.one_hot(target, logits.shape[1]).to(logits.dtype)
    )
    seen = predictions.sum(1, keepdim=True) > 0
    soft = torch.where(seen, torch.lerp(hard, predictions.detach().to(logits.dtype), alpha), hard)
    return -(soft * logits.log_softmax(1)).sum(1)


def _check(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be in [0, 1]: the part of the target that earlier predictions have.")


class ProgressiveSelfKD(Loss):
    r"""Calibrates and regularizes a network by its own predictions of an epoch ago, without a teacher (PS-KD).

    The losses are those of :func:`progressive_self_kd_loss`, with the softmax that the network gave the same sample the
    last time it came, and with a share that grows over the training: :math:`\alpha` times the part that is done.

    Args:
        alpha: the share of the network's own predictions at the end, in [0, 1]; the paper's best is 0.8, and 0 is cross
            entropy.

    Raises:
        ValueError: an ``alpha`` outside [0, 1].

    When to use: for classification from scratch that is overconfident, if each sample comes many times.
    Cost: C numbers in float32 for each sample of the data set, on the device and in each checkpoint: 20 MB for 50,000
    samples of 100 classes, 5 GB for ImageNet.
    Interactions: wrap the data set with ``with_index``. Each sample must be one row. Not with mixed samples. The
    training must have an end.

    Example:
        >>> memory = {"predictions": torch.tensor([[0.5, 0.5]])}
        >>> ProgressiveSelfKD(alpha=0.8)(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), memory, progress=0.5)
        tensor([0.5133])

    Paper: Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021,
    https://arxiv.org/abs/2006.12000.

    Differs from the paper: the share grows with each step, and not with each epoch.
    """

    family = "overconfidence"
    problems = ("classes",)
    remembers: ClassVar = {"predictions": Row(("C",), 0.0)}

    def __init__(self, *, alpha: float = 0.8) -> None:
        super().__init__()
        _check(alpha)
        self.alpha = alpha

    def forward(self, logits: Tensor, target: Tensor, memory: Mapping[str, Tensor], progress: float) -> Tensor:
        """(N, C) logits, targets and the last predictions -> (N,) losses."""
        return progressive_self_kd_loss(logits, target, memory["predictions"], alpha=self.alpha * float(progress))

    def learn(self, logits: Tensor) -> dict[str, Tensor]:
        """The predictions of this step."""
        return {"predictions": logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)}
