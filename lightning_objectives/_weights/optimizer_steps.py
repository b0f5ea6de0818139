"""Counts the steps that optimizers really take, and notes their learning rates."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch.optim import Optimizer

from lightning_objectives._trainer.patch import Patch

Rates = dict[str, list[float]]
"""The least and the greatest learning rate of each parameter group, by the numbers of the optimizer and the group."""


class OptimizerSteps:
    """Watches optimizers and counts their steps; steps that a gradient scaler skips do not count.

    Of an optimizer that wraps others, such as Lookahead, a step counts once if one of those took a step in it.

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
        self._undo: list[Callable[[], None]] = []
        self._wrappers: set[Any] = set()
        self._worked: set[Any] = set()
        """The wrappers whose inner optimizers have taken a step since the wrapper's last one."""
        self.watch(optimizers)

    def watch(self, optimizers: Iterable[Optimizer]) -> None:
        """Count the steps of these optimizers too."""
        for optimizer in optimizers:
            self._numbers.setdefault(optimizer, len(self._numbers))
            for inner in _inner_optimizers(optimizer):
                self._wrappers.add(optimizer)
                handle = inner.register_step_post_hook(lambda *_, outer=optimizer: self._worked.add(outer))
                self._undo.append(handle.remove)
            if not _calls_hooks(optimizer):
                patch = Patch(optimizer, "step", partial(self._step, optimizer))
                # Schedulers look for the mark that they leave on the method.
                vars(patch).update({**getattr(patch.inner, "__dict__", {}), **vars(patch)})
                self._undo.append(patch.remove)
                continue
            if self._before is not None:
                self._undo.append(optimizer.register_step_pre_hook(self._before).remove)
            self._undo.append(optimizer.register_step_post_hook(self._after_step).remove)

    def _step(self, optimizer: Optimizer, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._before is not None:
            self._before(optimizer)
        result = step(*args, **kwargs)
        self._after_step(optimizer)
        return result

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        # A gradient scaler calls a fused optimizer even if the gradients overflowed; the optimizer then skips the step.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and overflow.item():
            return
        if optimizer in self._wrappers:
            if optimizer not in self._worked:
                return
            self._worked.remove(optimizer)
        number = self._numbers[optimizer]
        self._counts[number] = self._counts.get(number, 0) + 1
        for i, group in enumerate(optimizer.param_groups if self._notes_rates else ()):
            rate = float(group["lr"])
            low, high = self.rates.get(f"{number}.{i}", (rate, rate))
            self.rates[f"{number}.{i}"] = [min(low, rate), max(high, rate)]

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers that are watched, in the order of their numbers."""
        return list(self._numbers)

    def take(self) -> int:
        """The steps since the last call; several optimizers that took turns in between count as one."""
        return max(self.take_each().values(), default=0)

    def take_each(self) -> dict[int, int]:
        """The steps of each optimizer since the last call, by its number."""
        counts, self._counts = self._counts, {}
        return counts

    def remove(self) -> None:
        """Remove the hooks from the optimizers, and forget what was counted."""
        while self._undo:
            self._undo.pop()()
        self._wrappers.clear()
        self._worked.clear()
        self._numbers.clear()
        self._counts.clear()


def _calls_hooks(optimizer: Any) -> bool:
    """Whether a step calls hooks: a wrapper may be no Optimizer, not call its ``__init__``, or set ``step``."""
    own = vars(optimizer).get("step")
    return (
        isinstance(optimizer, Optimizer)
        and {"_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"} <= vars(optimizer).keys()
        and getattr(type(optimizer).step, "hooked", False)
        and (own is None or hasattr(own, "_wrapped_by_lr_sched"))
    )


def _inner_optimizers(optimizer: Any) -> list[Optimizer]:
    """The optimizers that this one wraps: those in its attributes that have some of its parameters."""
    inner: list[Any] = []
    for name, value in vars(optimizer).items():
        if isinstance(value, dict) and name != "state":
            value = [*value.values()]
        inner += value if isinstance(value, (list, tuple)) else [value]
    inner = [v for v in inner if isinstance(v, Optimizer) and v is not optimizer and _calls_hooks(v)]
    return [v for v in inner if not _parameters(optimizer).isdisjoint(_parameters(v))]


def _parameters(optimizer: Any) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def steps_so_far(trainer: Any) -> int:
    """Guess how many steps a training has taken, for a callback that has no state in the checkpoint.

    The trainer adds up the steps of all optimizers; we assume that each took as many as the others.
    """
    return int(trainer.global_step) // max(1, len(trainer.optimizers))
