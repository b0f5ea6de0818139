"""Laws of the learning rate schedules."""

import copy
import math
import warnings

from torch.optim.lr_scheduler import LRScheduler

from lightning_objectives.testing.common import require

STEPS = 40


def _rates(schedule: LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates += [float(rate) for rate in schedule.get_last_lr()]
        schedule.optimizer.step()
        with warnings.catch_warnings():
            # A copy of an optimizer loses torch's mark on `step`, which shows the order of the two calls.
            warnings.filterwarnings("ignore", "Seems like `optimizer.step")
            schedule.step()
    return rates


def the_rate_stays_within_the_peak(schedule: LRScheduler) -> None:
    """No learning rate is higher than the optimizer's own, and none is negative."""
    peak = max(schedule.base_lrs)
    rates = _rates(copy.deepcopy(schedule), STEPS)
    within = all(math.isfinite(rate) and 0 <= rate <= peak for rate in rates)
    require(within, type(schedule).__name__, f"every rate must be in [0, {peak}], the optimizer's own; got {rates}.")


def going_on_from_a_state_is_going_on(schedule: LRScheduler) -> None:
    """A schedule that loads the state of another goes on as the other does."""
    first, second = copy.deepcopy(schedule), copy.deepcopy(schedule)
    _rates(first, STEPS // 4)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    same = _rates(first, STEPS) == _rates(second, STEPS)
    require(same, type(schedule).__name__, "saving, loading and going on must be going on.")
