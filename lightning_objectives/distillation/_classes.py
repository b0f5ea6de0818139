"""What distances on classes share: wide logits, divergences, and the parts at and beside the target's class."""

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(logits: Tensor, temperature: float) -> Tensor:
    """The logits over the temperature, in float32, or in float64 if they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """(N,) Kullback-Leibler divergences of the softmax of the first (N, C) logits from that of the second."""
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def class_of(target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The class of each row, and whether it is one.

    Args:
        target: (N,) int classes, or (N, C) float class probabilities, whose most probable class counts.
        classes: C.

    Returns:
        (N, 1) classes in [0, C), and (N,) whether the row has a class; a target to ignore, such as -100, is none.
    """
    found = target.argmax(1) if target.is_floating_point() else target.long()
    known = (found >= 0) & (found < classes)
    return torch.where(known, found, 0)[:, None], known


def beside(logits: Tensor, found: Tensor) -> Tensor:
    """(N, C - 1) the logits of the classes other than (N, 1) the found one."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    # A mask of what to keep would make a GPU wait, and a large negative logit would leave the class a share.
    return logits.gather(1, places + (places >= found))
