"""Times that can be compared on a machine that others use too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter, process_time

import torch


@dataclass
class Times:
    """The seconds of each repeat, by the clock on the wall and by that of the process, all its threads together."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def interleaved(
    runs: Mapping[str, Callable[[], object]], *, repeats: int = 30, warmup: int = 3, device: str = "cpu"
) -> dict[str, Times]:
    """The times of each run: one of each in turn, the order rotated, so that what slows the machine slows all.

    On a GPU the time is that between two events on the stream.
    """
    times = {name: Times() for name in runs}
    order = list(runs)
    for repeat in range(warmup + repeats):
        for name in order:
            wall, cpu = timed(runs[name], device)
            if repeat >= warmup:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
        order = [*order[1:], order[0]]
    return times


def timed(run: Callable[[], object], device: str = "cpu") -> tuple[float, float]:
    """The seconds of one call, on the wall (of the stream, on a GPU) and of the process."""
    if device == "cpu":
        cpu, wall = process_time(), perf_counter()
        run()
        return perf_counter() - wall, process_time() - cpu
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu = process_time()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3, process_time() - cpu


def medians(runs: Mapping[str, Callable[[], object]], *, repeats: int = 30, warmup: int = 3) -> dict[str, float]:
    """The median seconds of each run, interleaved."""
    return {name: median(times.wall) for name, times in interleaved(runs, repeats=repeats, warmup=warmup).items()}
