"""Stochastic weight averaging: the plain mean of the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import AverageState, Rule


def swa_weight(updates: int) -> float:
    """Compute the share of the newest weights after ``updates`` earlier ones, ``1 / (updates + 1)``.

    >>> [round(swa_weight(n), 3) for n in range(4)]
    [1.0, 0.5, 0.333, 0.25]
    """
    return 1 / (updates + 1)


class SWA(Rule):
    r"""Averages the weights of the end of a training, each with the same share.

    It is the mean of the weights at every update,
    :math:`\bar\theta \leftarrow \bar\theta + (\theta - \bar\theta)/(n+1)`. The first update copies: the weights at
    which the average began are not part of it.

    When to use: at the end of a training at a constant or cyclical learning rate, for example in its last quarter
    (``start_step``), with one update per epoch or cycle (``every_n_steps``). With BatchNorm re-estimate its statistics
    (``buffers="recalibrate"``).
    Cost: one float32 copy of the trainable weights and one pass over it per update.
    Interactions: gains vanish if the learning rate has decayed to zero.

    Example:
        >>> swa, weights = SWA(), [torch.tensor([9.0])]
        >>> state = swa.init(weights)
        >>> for step, value in enumerate([1.0, 2.0, 6.0], start=1):
        ...     swa.update(state, [torch.tensor([value])], step=step)
        >>> swa.read(state, weights, step=3)
        [tensor([3.])]

    Paper: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018,
    https://arxiv.org/abs/1803.05407.

    Differs from the paper: you choose the learning rate; the paper's cyclical schedule is not part of the method.
    """

    by_tensor = True

    def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int = 0) -> None:
        """Add the weights after optimizer step ``step`` to the mean, in place."""
        self.check(state, params)
        torch._foreach_lerp_(state.slots["average"], list(params), swa_weight(state.updates))
        state.updates += 1
