"""Warm-up, stable, decay."""

import math
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Decay = Literal["linear", "cosine", "1-sqrt", "exponential"]


def wsd_factor(
    step: int,
    *,
    warmup_steps: int = 0,
    stable_steps: int,
    decay_steps: int,
    shape: Decay = "1-sqrt",
    final_ratio: float = 0.0,
) -> float:
    r"""Compute the part :math:`\eta` of the peak at optimizer step ``step``, counted from 0.

    It rises linearly to 1 over ``warmup_steps`` and stays at 1 over ``stable_steps``. Then, with u the part of the
    ``decay_steps`` that is done,

    .. math::
        \eta = r + (1 - r) s(u), \quad s(u) = 1 - u, \; 1 - \sqrt u, \; (1 + \cos \pi u) / 2; \qquad
        \eta = r^u \text{ where exponential}

    >>> [wsd_factor(step, stable_steps=1, decay_steps=4, shape="linear") for step in range(7)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    # The first step of the decay is already below the peak, and the last is at its end.
    u = min(1.0, max(0, step + 1 - warmup_steps - stable_steps) / decay_steps)
    if shape == "exponential":
        return float(final_ratio**u)
    height = {"linear": 1 - u, "1-sqrt": 1 - math.sqrt(u), "cosine": (1 + math.cos(math.pi * u)) / 2}[shape]
    return final_ratio + (1 - final_ratio) * height


class WSDSchedule(LRScheduler):
    """Raises the learning rate to its peak, keeps it there, and decays it at the end of the training.

    The learning rate is the optimizer's, times :func:`wsd_factor`.

    Args:
        optimizer: its own learning rates are the peaks.
        warmup_steps: optimizer steps of the linear rise.
        stable_steps: optimizer steps at the peak after it.
        decay_steps: optimizer steps of the decay, usually a tenth to a fifth of all; the end is kept afterwards.
        shape: of the decay; ``1-sqrt`` falls at once, ``exponential`` needs a positive ``final_ratio``.
        final_ratio: r in [0, 1], the part of the peak where the decay ends.
        last_epoch: the number of steps done, as in torch; -1 to begin.

    Raises:
        ValueError: a setting outside its range.

    When to use: as the baseline of merged checkpoints, or if you may prolong a training from its stable part. Step it
    once per optimizer step (``interval="step"`` in Lightning). A bare ``lr_scheduler:`` in a LightningCLI YAML steps
    once per epoch, and so counts epochs.
    Cost: none.
    Interactions: averages and merges gain little in the decay.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.8)
        >>> schedule = WSDSchedule(optimizer, stable_steps=1, decay_steps=4)
        >>> for _ in range(3):
        ...     print(round(schedule.get_last_lr()[0], 4))
        ...     optimizer.step()
        ...     schedule.step()
        0.8
        0.4
        0.2343

    Paper: Hu et al., MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies, 2024,
    https://arxiv.org/abs/2404.06395; ``1-sqrt`` is of Hägele et al., https://arxiv.org/abs/2405.18392.
    """

    example: ClassVar[dict[str, Any]] = {"stable_steps": 20, "decay_steps": 10}

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int = 0,
        stable_steps: int,
        decay_steps: int,
        shape: Decay = "1-sqrt",
        final_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if warmup_steps < 0 or stable_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps} and stable_steps={stable_steps} must be >= 0.")
        if decay_steps < 1:
            raise ValueError(f"decay_steps={decay_steps} must be >= 1; use WarmupStableSchedule for no decay.")
        if shape not in ("linear", "cosine", "1-sqrt", "exponential"):
            raise ValueError(f"shape={shape!r} must be 'linear', 'cosine', '1-sqrt' or 'exponential'.")
        if not 0 <= final_ratio <= 1:
            raise ValueError(f"final_ratio={final_ratio} must be in [0, 1].")
        if shape == "exponential" and final_ratio == 0:
            raise ValueError("final_ratio=0.0 is never reached by shape='exponential'; use 0.01, for example.")
        self.warmup_steps = warmup_steps
        self.stable_steps = stable_steps
        self.decay_steps = decay_steps
        self.shape: Decay = shape
        self.final_ratio = final_ratio
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Compute the learning rate of each parameter group."""
        factor = wsd_factor(
            self.last_epoch,
            warmup_steps=self.warmup_steps,
            stable_steps=self.stable_steps,
            decay_steps=self.decay_steps,
            shape=self.shape,
            final_ratio=self.final_ratio,
        )
        return [float(peak) * factor for peak in self.base_lrs]
