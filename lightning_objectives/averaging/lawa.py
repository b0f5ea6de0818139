"""Latest weight averaging: the mean of the newest few of the weights of a training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import AverageState, Rule


class LAWA(Rule):
    r"""Averages the newest few of the weights that were taken at intervals, to be ahead of the training's own weights.

    .. math::
        \bar\theta = \frac{1}{n} \sum_{i=0}^{n-1} \theta_{(u - i) \nu}, \qquad n = \min(k, u)

    after u updates, one every :math:`\nu` optimizer steps. Between two updates the average stands still.

    Args:
        last: :math:`k \ge 1`, how many of the newest weights are averaged; 1 is the weights of the last update.

    Raises:
        ValueError: ``last`` is no whole number of at least 1.

    When to use: to see earlier in a long training, with a high learning rate, where it will come to. Take the weights
    at long intervals: once an epoch, or every 1000 steps (``every_n_steps=1000``); of neighbouring steps use
    :class:`EMA`. The paper's scripts take 5 ends of epochs for ResNet-50, and 10 weights for RoBERTa.
    Cost: k + 1 float32 copies of the trainable weights, and k passes over them per update. For a large network, or a
    long window, save checkpoints and merge them after the training.
    Interactions: a checkpoint of the training holds all k + 1 copies. With BatchNorm re-estimate its statistics
    (``buffers="recalibrate"``).

    Example:
        >>> lawa, weights = LAWA(last=2), [torch.tensor([0.0])]
        >>> state = lawa.init(weights)
        >>> for step, value in enumerate([1.0, 2.0, 6.0], start=1):
        ...     lawa.update(state, [torch.tensor([value])], step=step)
        >>> lawa.read(state, weights, step=3)  # (2 + 6) / 2
        [tensor([4.])]

    Paper: Kaddour, Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging, 2022,
    https://arxiv.org/abs/2209.14981.

    Differs from the paper's code: the code averages integer buffers, which raises an error, and keeps its weights in
    one list for all instances. On the CPU, its list holds the live weights themselves.
    """

    by_tensor = True

    def __init__(self, *, last: int = 5) -> None:
        if not (isinstance(last, int) and last >= 1):
            raise ValueError(f"last={last} must be a whole number >= 1: how many of the newest weights are averaged.")
        self.last = last

    def init(self, params: Sequence[Tensor]) -> AverageState:
        """Build the state before the first update: the weights as the average, and a place for each of the newest."""
        state = super().init(params)
        for place in range(self.last):
            state.slots[f"taken_{place}"] = [p.detach().clone() for p in params]
        return state

    def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int = 0) -> None:
        """Put the weights after optimizer step ``step`` in the place of the oldest, and compute the mean."""
        self.check(state, params)
        torch._foreach_copy_(state.slots[f"taken_{state.updates % self.last}"], list(params))
        # Anew at each update: what a running sum adds and subtracts later leaves its rounding errors behind.
        average = state.slots["average"]
        torch._foreach_copy_(average, state.slots["taken_0"])
        for place in range(1, min(self.last, state.updates + 1)):
            torch._foreach_lerp_(average, state.slots[f"taken_{place}"], 1 / (place + 1))
        state.updates += 1
