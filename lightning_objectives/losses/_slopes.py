"""Losses whose gradient is known, so that nothing is differentiated through an iteration."""

from typing import Any

import torch
from torch import Tensor


def with_slopes(logits: Tensor, losses: Tensor, slopes: Tensor, name: str) -> Tensor:
    """Give (N,) losses the gradient ``slopes``, (N, C), at the logits; ``name`` is for the refusal of a second one."""
    result: Tensor = _Known.apply(logits, losses, slopes, name)
    return result


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, losses: Tensor, slopes: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(slopes)
        ctx.name = name
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():  # Autograd would take the slopes for constants, and a second derivative for 0.
            raise RuntimeError(
                f"{ctx.name} has no second derivative, but its first was asked for with create_graph=True. Leave that "
                "out, or use another loss beside a penalty of gradients."
            )
        (slopes,) = ctx.saved_tensors
        return grad[:, None] * slopes, None, None, None
