"""A warm-up, then a constant learning rate."""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def warmup_factor(step: int, *, warmup_steps: int = 0) -> float:
    """Compute the part of the peak at optimizer step ``step``, counted from 0: ``(step + 1) / warmup_steps``, at most
    1.

    >>> [warmup_factor(step, warmup_steps=4) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


class WarmupStableSchedule(LRScheduler):
    """Raises the learning rate linearly to its peak and keeps it there: the schedule for a merge of checkpoints.

    The learning rate is the optimizer's, times :func:`warmup_factor`.

    Args:
        optimizer: its own learning rates are the peaks.
        warmup_steps: the optimizer step, counted from 1, that is the first at the peak; 0 for none.
        last_epoch: the number of steps done, as in torch; -1 to begin.

    Raises:
        ValueError: a negative ``warmup_steps``.

    When to use: if checkpoints are merged in place of a decay, or if the length of the training is not known yet. Step
    it once per optimizer step (``interval="step"`` in Lightning). A bare ``lr_scheduler:`` in a LightningCLI YAML steps
    once per epoch, and so counts epochs.
    Cost: none.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.4)
        >>> schedule = WarmupStableSchedule(optimizer, warmup_steps=2)
        >>> for _ in range(3):
        ...     print(schedule.get_last_lr())
        ...     optimizer.step()
        ...     schedule.step()
        [0.2]
        [0.4]
        [0.4]

    Paper: Tian et al., WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for LLM Pre-training, 2025,
    https://arxiv.org/abs/2507.17634.

    Differs from the paper: the steps count from 1, so that the first is not at the learning rate 0.
    """

    def __init__(self, optimizer: Optimizer, *, warmup_steps: int = 0, last_epoch: int = -1) -> None:
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps} must be >= 0.")
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Compute the learning rate of each parameter group."""
        return [float(peak) * warmup_factor(self.last_epoch, warmup_steps=self.warmup_steps) for peak in self.base_lrs]
