"""What a step of an arm costs, for the arms that are given the time of another: CPU seconds, measured in turns."""

import json
import tempfile
from statistics import median

from benchmarks.quality.grid import GROUPS, TASKS, Job
from benchmarks.quality.train import COSTS, execute

REPEATS = 3


def pairs() -> dict[str, set[str]]:
    """By task the arms whose costs are compared: those with another's time, and those others."""
    found: dict[str, set[str]] = {}
    for group in GROUPS:
        for arm in group.arms:
            if arm.as_long_as is not None:
                found.setdefault(group.task, set()).update((arm.as_long_as, arm.searched))
    return found


def write() -> None:
    """Measure whole trainings, and keep the median seconds of a step. A teacher is asked once a sample."""
    costs: dict[str, dict[str, float]] = {}
    for task, names in pairs().items():
        seconds: dict[str, list[float]] = {name: [] for name in sorted(names)}
        for _ in range(REPEATS):
            for name in seconds:
                with tempfile.TemporaryDirectory() as answers:
                    job = Job("costs", task, name, 0, "search", 1.0)
                    run = execute(job, evaluate=False, answers=answers)
                seconds[name].append(run["seconds"]["training"] / run["steps"])
        costs[task] = {name: round(median(times), 6) for name, times in seconds.items()}
        print(task, costs[task])
    assert set(costs) <= set(TASKS)
    COSTS.write_text(json.dumps(costs, indent=1) + "\n")
