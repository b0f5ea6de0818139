"""Times that can be compared on a machine that others use too."""

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter


def medians(runs: Mapping[str, Callable[[], object]], *, repeats: int = 30, warmup: int = 3) -> dict[str, float]:
    """The median seconds of each run, one of each in turn, so that what slows the machine slows all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(warmup + repeats):
        for name, run in runs.items():
            start = perf_counter()
            run()
            if repeat >= warmup:
                seconds[name].append(perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}
