"""Counts the steps that optimizers really take, and notes their learning rates."""

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

Rates = dict[str, list[float]]
"""The least and the greatest learning rate of each parameter group, by the numbers of the optimizer and the group."""


class OptimizerSteps:
    """Watches optimizers and counts their steps; steps that a gradient scaler skips do not count.

    Args:
        optimizers: the optimizers to watch.
        rates: whether the learning rates are noted.
        before: called with the optimizer before each of its steps.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.5)
        >>> steps = OptimizerSteps([optimizer], rates=True)
        >>> optimizer.step()
        >>> steps.take(), steps.take(), steps.rates
        (1, 0, {'0.0': [0.5, 0.5]})
    """

    def __init__(
        self,
        optimizers: Iterable[Optimizer] = (),
        *,
        rates: bool = False,
        before: Callable[..., None] | None = None,
    ) -> None:
        self.rates: Rates = {}
        """Of all steps since it was last cleared."""
        self._notes_rates = rates
        self._before = before
        self._counts: dict[int, int] = {}
        self._numbers: dict[Optimizer, int] = {}
        self._handles: list[RemovableHandle] = []
        self.watch(optimizers)

    def watch(self, optimizers: Iterable[Optimizer]) -> None:
        """Count the steps of these optimizers too."""
        for optimizer in optimizers:
            self._numbers.setdefault(optimizer, len(self._numbers))
            if self._before is not None:
                self._handles.append(optimizer.register_step_pre_hook(self._before))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        # A gradient scaler calls a fused optimizer even if the gradients overflowed; the optimizer then skips the step.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and overflow.item():
            return
        number = self._numbers[optimizer]
        self._counts[number] = self._counts.get(number, 0) + 1
        for i, group in enumerate(optimizer.param_groups if self._notes_rates else ()):
            rate = float(group["lr"])
            low, high = self.rates.get(f"{number}.{i}", (rate, rate))
            self.rates[f"{number}.{i}"] = [min(low, rate), max(high, rate)]

    def take(self) -> int:
        """The steps since the last call; several optimizers that took turns in between count as one."""
        count = max(self._counts.values(), default=0)
        self._counts.clear()
        return count

    def remove(self) -> None:
        """Remove the hooks from the optimizers, and forget what was counted."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._numbers.clear()
        self._counts.clear()


def steps_so_far(trainer: Any) -> int:
    """Guess how many steps a training has taken, for a callback that has no state in the checkpoint.

    The trainer adds up the steps of all optimizers; we assume that each took as many as the others.
    """
    return int(trainer.global_step) // max(1, len(trainer.optimizers))
