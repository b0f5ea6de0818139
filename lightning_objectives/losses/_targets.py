"""What losses on classes share: wide log-probabilities, and the expectation of a loss over the target."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.shapes import check_classes, check_shapes


def wide(logits: Tensor) -> Tensor:
    """The logits in float32, or in float64 if they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def log_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    """(N, C) logarithms of the softmax, in float32 or better.

    Raises:
        ValueError: the shapes do not fit, or there are fewer than two classes.
    """
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    return wide(logits).log_softmax(1)


def expected(values: Tensor, target: Tensor) -> Tensor:
    """(N,) the value of the target's class among (N, C) values; of a target of probabilities, the expectation."""
    if not target.is_floating_point():
        return values.gather(1, target.long()[:, None]).squeeze(1)
    # 0 * inf is NaN, so a class without a share must not count, even if its logit is -inf.
    return torch.where(target == 0, 0.0, target.to(values.dtype) * values).sum(1)


def shares(logits: Tensor, target: Tensor) -> Tensor:
    """(N, C) the share of each class in the target, in the type of the logits: one-hot for classes."""
    return (target if target.is_floating_point() else F.one_hot(target.long(), logits.shape[1])).to(logits.dtype)


def of_target(formula: Callable[..., Tensor], target: Tensor, *tables: Tensor) -> Tensor:
    """(N,) a formula of single classes at the target's class, or its expectation over a target of probabilities.

    Args:
        formula: computes losses from one or more tensors, element by element.
        target: (N,) int classes or (N, C) float class probabilities.
        tables: (N, C) the arguments of the formula.
    """
    if target.is_floating_point():
        return expected(formula(*tables), target)
    return formula(*(expected(table, target) for table in tables))


def power_loss(log_p: Tensor, power: float) -> Tensor:
    r"""Compute :math:`(1 - p^q) / q` from :math:`\log p`, exact near :math:`p = 1`; :math:`-\log p` at 0."""
    return -log_p if power == 0 else -torch.expm1(power * log_p) / power
