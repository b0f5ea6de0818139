"""The results as the page asks for them: values by task, arm and seed, and comparisons of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.quality.arms import AVERAGES
from benchmarks.quality.grid import SEEDS, TASKS, Compared, Job, arms
from benchmarks.quality.pool import chosen
from benchmarks.quality.readouts import WINDOWS
from benchmarks.quality.stats import Difference, paired
from benchmarks.quality.store import Store

STEPS = "steps to the training loss"


@dataclass(frozen=True)
class Results:
    """Read access to a store; arms may be followed by what is read out of them, as ``constant: BEMA``."""

    store: Store
    seeds: Sequence[int] = field(default=SEEDS)

    def run(self, task: str, arm: str, seed: int) -> dict[str, Any] | None:
        """The final run of an arm on a seed."""
        return self.store.runs.get(Job("", task, arm.partition(": ")[0], seed, "final").key)

    def readout(self, task: str, arm: str) -> str:
        """The network that is meant: a family (EMA, BEMA, SWA, WSM) by what the search's validation found best."""
        name, _, wanted = arm.partition(": ")
        if not wanted:
            return "raw"
        candidates = {"WSM": list(WINDOWS)}.get(
            wanted, [n for n in AVERAGES if n.split()[0] == wanted and "φ" not in n]
        )
        if wanted in ("raw", *AVERAGES) or not candidates or wanted not in ("EMA", "BEMA", "SWA", "WSM"):
            return wanted
        job = Job(
            "", task, arms(task)[name].searched, 100, "search", chosen(self.store, Job("", task, name, 0, "final"))
        )
        searched = self.store.runs.get(job.key)
        if searched is None:
            return candidates[0]
        return min(candidates, key=lambda n: searched["final"][n]["val"]["nll"])

    def values(self, task: str, arm: str, measure: str = "") -> dict[int, float]:
        """By seed, on the test split, of the runs that are there."""
        found = {}
        name = self.readout(task, arm)
        for seed in self.seeds:
            run = self.run(task, arm, seed)
            if run is not None and name in run["final"]:
                found[seed] = run["final"][name]["test"][measure or TASKS[task].measure]
        return found

    def compared(self, asked: Compared) -> Difference | None:
        """The paired difference; None where no seed has both."""
        if asked.measure == STEPS:
            return self._steps_saved(asked)
        ours, theirs = (self.values(asked.task, arm, asked.measure) for arm in (asked.arm, asked.against))
        both = [seed for seed in ours if seed in theirs]
        return paired([ours[s] for s in both], [theirs[s] for s in both]) if both else None

    def _steps_saved(self, asked: Compared) -> Difference | None:
        """The parts of the steps after which each arm's training loss is at what the other ends with (at most 1)."""
        ours, theirs = [], []
        for seed in self.seeds:
            pair = [self.run(asked.task, arm, seed) for arm in (asked.arm, asked.against)]
            if None in pair:
                continue
            curves = [smooth(run["loss"]["values"]) for run in pair]  # type: ignore[index]  # none is None
            goal = curves[1][-1]
            mine, other = (first_below(curve, goal) for curve in curves)
            ours.append(mine)
            theirs.append(other)
        return paired(ours, theirs) if ours else None

    def curve(self, task: str, arm: str, name: str) -> tuple[list[int], np.ndarray]:
        """Steps, and the curve of every seed that is there, a row each."""
        runs = [run for seed in self.seeds if (run := self.run(task, arm, seed)) is not None]
        rows = [run["curves"][name] for run in runs]
        return (runs[0]["curves"]["step"] if runs else []), np.array(rows)


def smooth(values: Sequence[float], width: int = 5) -> np.ndarray:
    """The mean of each value and those before it, ``width`` in all."""
    padded = np.concatenate([np.full(width - 1, values[0]), np.asarray(values, float)])
    return np.convolve(padded, np.ones(width) / width, "valid")


def first_below(curve: np.ndarray, goal: float) -> float:
    """The part of a training after which a curve is at or below the goal for the first time; 1 where never."""
    below = np.flatnonzero(curve <= goal)
    return (below[0] + 1) / len(curve) if len(below) else 1.0
