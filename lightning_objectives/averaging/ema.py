"""Exponential moving average of the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import AverageState, Rule


def ema_decay(elapsed: int, *, decay: float = 0.999, warmup: bool = False, power: float = 2 / 3) -> float:
    r"""Compute the share of the old average that is kept, ``elapsed`` optimizer steps after the average began.

    Without warm-up it is ``decay``. With it, it is :math:`\min(d, 1 - (1 + s)^{-p})` with :math:`s = \text{elapsed} -
    1`. This is timm's rule, which gives 0 (a plain copy) at the first step.

    Raises:
        ValueError: a decay outside [0, 1), or a power that is not positive.

    >>> ema_decay(1, warmup=True), round(ema_decay(8, warmup=True), 4), ema_decay(10**7, warmup=True)
    (0.0, 0.75, 0.999)
    """
    _check(decay, power)
    return min(decay, 1 - (1 + max(0, elapsed - 1)) ** -power) if warmup else decay


def _check(decay: float, power: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay} must be in [0, 1).")
    if not power > 0:
        raise ValueError(f"power={power} must be > 0.")


class EMA(Rule):
    r"""Averages the weights of the recent steps, so that you evaluate an average instead of the newest weights alone.

    It is the exponential moving average :math:`\bar\theta \leftarrow d \bar\theta + (1 - d) \theta`. The first update
    copies the weights.

    Args:
        decay: :math:`d` in [0, 1); the average reaches back about :math:`1 / (1 - d)` updates. 0 is the live weights.
        warmup: let the decay grow from 0 by :func:`ema_decay`, so that the early weights are soon forgotten.
        power: :math:`p` of the warm-up; 2/3 for long trainings, 3/4 for short ones, 1 is the plain mean.

    Raises:
        ValueError: a decay outside [0, 1), or a power that is not positive.

    When to use: almost always. Evaluate the average, train the raw weights. With fewer than ``3 / (1 - decay)`` steps
    use ``warmup=True`` or a lower decay.
    Cost: one float32 copy of the trainable weights and one pass over it per step.
    Interactions: gains shrink as the learning rate decays.

    Example:
        >>> ema, weights = EMA(decay=0.9), [torch.tensor([1.0])]
        >>> state = ema.init(weights)
        >>> for step, value in enumerate([2.0, 3.0], start=1):
        ...     ema.update(state, [torch.tensor([value])], step=step)
        >>> ema.read(state, weights, step=2)  # 0.9 * 2 + 0.1 * 3
        [tensor([2.1000])]

    Paper: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; the warm-up is that of
    timm's ``ModelEmaV3``, https://github.com/huggingface/pytorch-image-models.
    """

    by_tensor = True

    def __init__(self, *, decay: float = 0.999, warmup: bool = False, power: float = 2 / 3) -> None:
        _check(decay, power)
        self.decay = decay
        self.warmup = warmup
        self.power = power

    def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int = 0) -> None:
        """Add the weights after optimizer step ``step`` to the average, in place."""
        self.check(state, params)
        decay = ema_decay(step - start, decay=self.decay, warmup=self.warmup, power=self.power)
        if state.updates == 0:
            decay = 0.0
        torch._foreach_lerp_(state.slots["average"], list(params), 1 - decay)
        state.updates += 1
