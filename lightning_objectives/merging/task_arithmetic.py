"""Task arithmetic: adds what several networks have learned to the network that they began with."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.merging._changes import checked_base, needed


def task_arithmetic_merge(weights: Sequence[Tensor], *, base: Tensor, scale: float = 1.0) -> Tensor:
    r"""Compute the base plus the scaled sum of what each network has changed in it, its task vector.

    .. math::
        \theta = \theta_0 + \lambda \sum_k \tau_k, \qquad \tau_k = \theta_k - \theta_0

    Args:
        weights: K tensors :math:`\theta_k` of one shape, in any float or complex type.
        base: :math:`\theta_0`, of the same shape: what all networks were fine-tuned from.
        scale: :math:`\lambda`; with one network, 1 gives that network and a negative number takes away what it has
            learned. :math:`1 / K` gives the mean of the networks.

    Returns:
        a tensor of the same shape, in float32 or wider; the base, to the bit, wherever nothing has changed.

    Raises:
        ValueError: the shapes differ, there is no network, or ``scale`` is not finite.

    Example:
        >>> weights = [torch.tensor([2.0, 1.0]), torch.tensor([1.0, 5.0])]
        >>> task_arithmetic_merge(weights, base=torch.ones(2), scale=0.5)  # 1 + (1 + 0) / 2, 1 + (0 + 4) / 2
        tensor([1.5000, 3.0000])

    Paper: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, section 2, https://arxiv.org/abs/2212.04089.
    """
    _check(scale)
    base = checked_base(base, weights)
    pull = reduce(torch.add, (base - weight for weight in weights))
    # A sum would turn a base of -0 into +0.
    return base.where(pull == 0, base - scale * pull)


def _check(scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be finite; choose it on a validation set, for example from 0 to 1.")


class TaskArithmetic(Merge):
    """Adds up what several fine-tuned networks have learned, or takes away what one has learned.

    The merge is that of :func:`task_arithmetic_merge`.

    Args:
        scale: the factor of the sum of the changes. Choose it on a validation set, as the paper does; the default is
            that of the paper's code, and too much for several tasks.

    Raises:
        ValueError: ``scale`` is not finite.

    When to use: if several networks were fine-tuned from the same base on different tasks, and one network must do all
    of them; or, with a negative ``scale``, to make one forget a task. It is the first merge to try: it needs one pass
    and one number. If the tasks disturb each other, use :class:`TIES`.
    Cost: one pass over the files and the base.
    Interactions: it needs the base. The changes are added, not averaged, so the best ``scale`` falls with the number of
    files. Name floating buffers, such as BatchNorm's statistics, with ``buffers=``: otherwise their changes are added
    too, and a variance may become negative. Heads of different classes cannot be merged.

    Example:
        >>> TaskArithmetic(scale=-1.0).tensor([torch.tensor([3.0])], base=torch.ones(1))  # 1 - (3 - 1)
        tensor([-1.])
    """

    function = staticmethod(task_arithmetic_merge)
    linear = False
    asks = ("base",)
    by_element = True

    def __init__(self, *, scale: float = 1.0) -> None:
        _check(scale)
        self.scale = scale

    def tensor(
        self,
        weights: Sequence[Tensor],
        *,
        base: Tensor | None = None,
        importance: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        statistics: Any = None,
    ) -> Tensor:
        """The merge of one tensor."""
        return task_arithmetic_merge(weights, base=needed(base, self), scale=self.scale)
