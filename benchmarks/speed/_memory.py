"""How much memory a piece of work takes at most, in a process of its own."""

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def resident(kind: str = "RssAnon") -> int:
    """Bytes of this process in memory now: ``RssAnon`` what no file stands behind, ``VmRSS`` all."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind + ":"):
            return 1024 * int(line.split()[1])
    return 0


class Peak:
    """Samples the memory of this process beside some work; ``grown`` is the most above the beginning, in bytes.

    On a GPU it is what its allocator gave out at most.
    """

    def __init__(self, device: str = "cpu", *, every: float = 0.001) -> None:
        self.device = device
        self.every = every
        self.grown = 0

    def __enter__(self) -> "Peak":
        gc.collect()
        if self.device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        self.before, self._done = resident(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(self.every):
            self.grown = max(self.grown, resident() - self.before)

    def __exit__(self, *_: object) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()
            self.grown = torch.cuda.max_memory_allocated() - self.before
            return
        self.grown = max(self.grown, resident() - self.before)
        self._done.set()
        self._thread.join()


def peak_of(work: Callable[[], object], device: str = "cpu") -> dict[str, float]:
    """Peak bytes above the beginning, and the seconds of one call.

    >>> found = peak_of(lambda: torch.ones(2**24).sum())
    >>> found["bytes"] >= 2**26
    True
    """
    with Peak(device) as peak:
        start = perf_counter()
        work()
        seconds = perf_counter() - start
    return {"bytes": peak.grown, "seconds": seconds}


def apart(function: str, threads: int, **settings: Any) -> Any:
    """What ``module:function`` returns for these settings, called in a fresh process of the same environment.

    Memory that one variant has left to the allocator would hide what the next one takes. Large blocks are given back to
    the system at once there, for the same reason.
    """
    call = json.dumps({"function": function, "threads": threads, "settings": settings})
    fixed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed._apart", call],
        cwd=ROOT,
        env={**os.environ, **fixed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{function}({settings}) failed in its own process:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
