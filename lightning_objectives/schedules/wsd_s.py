"""Warm-up, stable, decay, for several budgets in one training."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Shape = Literal["inverse", "linear", "cosine", "1-sqrt"]


def wsd_s_factor(
    step: int,
    *,
    ends: Sequence[int],
    warmup_steps: int = 0,
    decay: float = 0.1,
    shape: Shape = "inverse",
    final_ratio: float = 0.1,
) -> float:
    r"""Compute the part :math:`\eta` of the peak at optimizer step ``step``, counted from 0.

    It rises linearly to 1 over ``warmup_steps``. Each segment, from one of the ``ends`` to the next, stays at 1 and
    decays over the last part ``decay`` of its steps, rounded up. With u the part of the decay that is done and r the
    ``final_ratio``,

    .. math::
        \eta = \frac{1}{u / r + 1 - u} \text{ (inverse)}, \qquad
        \eta = r + (1 - r) s(u), \quad s(u) = 1 - u, \; 1 - \sqrt u, \; (1 + \cos \pi u) / 2

    The step after an end is at the peak again. After the last end the last value is kept.

    >>> [round(wsd_s_factor(step, ends=(4, 8), decay=0.5), 3) for step in range(9)]
    [1.0, 1.0, 0.182, 0.1, 1.0, 1.0, 0.182, 0.1, 0.1]
    """
    step = min(step, ends[-1] - 1)
    place = sum(end <= step for end in ends)
    begin, end = ends[place - 1] if place else 0, ends[place]
    decay_steps = math.ceil(decay * (end - begin) - 1e-9)
    u = max(0, step + 1 - (end - decay_steps)) / decay_steps
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if shape == "inverse":
        return rise / (u / final_ratio + 1 - u)
    height = {"linear": 1 - u, "1-sqrt": 1 - math.sqrt(u), "cosine": (1 + math.cos(math.pi * u)) / 2}[shape]
    return rise * (final_ratio + (1 - final_ratio) * height)


class WSDSSchedule(LRScheduler):
    """Gives a good checkpoint at each of several budgets of one training, by a short decay before each (WSD-S).

    The learning rate is the optimizer's, times :func:`wsd_s_factor`. After a decay the training goes on from the
    decayed weights at the peak, without a warm-up.

    Args:
        optimizer: its own learning rates are the peaks.
        ends: the numbers of optimizer steps at which the budgets end, increasing; save a checkpoint there.
        warmup_steps: optimizer steps of the linear rise at the beginning.
        decay: in (0, 1], the part of each segment between two ends in which it decays.
        shape: of the decay: ``"inverse"`` lets one over the learning rate grow linearly.
        final_ratio: r in (0, 1], the part of the peak where a decay ends.
        last_epoch: the number of steps done, as in torch; -1 to begin.

    Raises:
        ValueError: a setting outside its range.

    When to use: if you want to know, and keep, what a training gives at several lengths, without one training for each.
    Step it once per optimizer step (``interval="step"`` in Lightning), and save with
    ``ModelCheckpoint(every_n_train_steps=...)``.
    Cost: none.
    Interactions: averages that reach over an end mix decayed and undecayed weights.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.8)
        >>> schedule = WSDSSchedule(optimizer, ends=(4, 8), decay=0.25)
        >>> for _ in range(5):
        ...     print(round(schedule.get_last_lr()[0], 4))
        ...     optimizer.step()
        ...     schedule.step()
        0.8
        0.8
        0.8
        0.08
        0.8

    Paper: Wen et al., Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective,
    2024, https://arxiv.org/abs/2410.05192. The part of the decay, its shape and its end were not checked at the source.
    """

    example: ClassVar[dict[str, Any]] = {"ends": (12, 20, 30)}

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        ends: Sequence[int],
        warmup_steps: int = 0,
        decay: float = 0.1,
        shape: Shape = "inverse",
        final_ratio: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        if not ends or any(later <= earlier for earlier, later in zip((0, *ends), ends)):
            raise ValueError(f"ends={ends} must be increasing numbers of steps above 0, one for each budget.")
        if not 0 <= warmup_steps < ends[0]:
            raise ValueError(f"warmup_steps={warmup_steps} must be >= 0 and below the first of ends={ends}.")
        if not 0 < decay <= 1:
            raise ValueError(f"decay={decay} must be in (0, 1]: the part of each segment that decays.")
        if shape not in ("inverse", "linear", "cosine", "1-sqrt"):
            raise ValueError(f"shape={shape!r} must be 'inverse', 'linear', 'cosine' or '1-sqrt'.")
        if not 0 < final_ratio <= 1:
            raise ValueError(f"final_ratio={final_ratio} must be in (0, 1].")
        self.ends = tuple(ends)
        self.warmup_steps = warmup_steps
        self.decay = decay
        self.shape: Shape = shape
        self.final_ratio = final_ratio
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Compute the learning rate of each parameter group."""
        factor = wsd_s_factor(
            self.last_epoch,
            ends=self.ends,
            warmup_steps=self.warmup_steps,
            decay=self.decay,
            shape=self.shape,
            final_ratio=self.final_ratio,
        )
        return [float(peak) * factor for peak in self.base_lrs]
