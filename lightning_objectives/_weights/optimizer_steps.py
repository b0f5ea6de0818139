"""How many steps optimizers really take, and at which learning rates."""

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

Rates = dict[str, list[float]]
"""The least and the greatest learning rate of each parameter group, by the numbers of the optimizer and the group."""


class OptimizerSteps:
    """Watches optimizers; steps that a gradient scaler skips do not count.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.5)
    >>> steps = OptimizerSteps([optimizer])
    >>> optimizer.step()
    >>> steps.take(), steps.take(), steps.rates
    (1, 0, {'0.0': [0.5, 0.5]})
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.rates: Rates = {}
        """Over all steps since it was last cleared."""
        self._taken: dict[int, int] = {}
        self._optimizers = list(optimizers)
        self._handles = [optimizer.register_step_post_hook(self._after_step) for optimizer in self._optimizers]

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        # A fused optimizer is called though the gradients overflowed, and leaves the weights alone by itself.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and overflow.item():
            return
        number = next(i for i, known in enumerate(self._optimizers) if known is optimizer)
        self._taken[number] = self._taken.get(number, 0) + 1
        for i, group in enumerate(optimizer.param_groups):
            rate = float(group["lr"])
            low, high = self.rates.get(f"{number}.{i}", (rate, rate))
            self.rates[f"{number}.{i}"] = [min(low, rate), max(high, rate)]

    def take(self) -> int:
        """The steps since the last call; several optimizers that took turns in between count as one."""
        taken = max(self._taken.values(), default=0)
        self._taken.clear()
        return taken

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
