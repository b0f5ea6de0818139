"""Clipping of the gradient of each parameter tensor by itself."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.kinds import GradientTransform
from lightning_objectives.shapes import check_shapes, check_tensors, forms

_GRADIENT = {"gradient": forms("(...) float")}


def clip_to_norm(gradient: Tensor, *, max_norm: float = 1.0) -> Tensor:
    r"""Scale a gradient down to a norm of at most :math:`c`: :math:`g \min(1, c / (\|g\| + 10^{-6}))`.

    Raises:
        ValueError: whole numbers, or a norm that is not positive.

    >>> clip_to_norm(torch.tensor([3.0, 4.0]), max_norm=1.0)
    tensor([0.6000, 0.8000])
    """
    _check(max_norm)
    check_shapes(_GRADIENT, gradient=gradient)
    norm = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
    factor: Tensor = (max_norm / (norm + 1e-6)).clamp_max(1.0)
    return gradient * factor.to(gradient.dtype)


def _check(max_norm: float) -> None:
    if not max_norm > 0:
        raise ValueError(f"max_norm={max_norm} must be > 0; float('inf') clips nothing.")


class ComponentwiseGradClip(GradientTransform):
    """Clips the gradient of each parameter tensor by itself, so that a large one does not shrink the others.

    Each gradient is clipped by :func:`clip_to_norm`.

    Args:
        max_norm: :math:`c > 0`; infinity clips nothing. The paper's grid is 0.01, 0.05, 0.1, 0.5, 1 and 5.

    Raises:
        ValueError: a norm that is not positive.

    When to use: to fine-tune pretrained language models on few samples, if some tensors get far greater gradients than
    others.
    Cost: one pass over the gradients and a copy of them.
    Interactions: use it in place of the Trainer's ``gradient_clip_val``, which would clip the result once more.

    Example:
        >>> clip, weights = ComponentwiseGradClip(max_norm=1.0), [torch.zeros(2), torch.zeros(2)]
        >>> clip.update([torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])], weights, clip.init(weights))
        [tensor([0.6000, 0.8000]), tensor([0.3000, 0.4000])]

    Paper: Yang and Ma, Improving Stability of Fine-Tuning Pretrained Language Models via Component-Wise Gradient Norm
    Clipping, EMNLP 2022, https://arxiv.org/abs/2210.10325.

    Differs from the paper: the whole accumulated gradient is clipped, once before the step. The released code clips
    after every backward pass.
    """

    exemplar = True

    def __init__(self, *, max_norm: float = 1.0) -> None:
        _check(max_norm)
        self.max_norm = max_norm

    def active(self, *, step: int) -> bool:
        """Return False at an infinite ``max_norm``, where nothing is clipped."""
        return self.max_norm != float("inf")

    def update(
        self, gradients: Sequence[Tensor | None], params: Sequence[Tensor], state: dict[str, Any]
    ) -> list[Tensor | None]:
        """Clip each gradient by itself."""
        check_tensors(params, gradients=gradients)
        return [None if g is None else clip_to_norm(g, max_norm=self.max_norm) for g in gradients]
