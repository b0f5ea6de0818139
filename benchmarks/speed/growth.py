"""How cost grows, as the slope of log time over log size: 1 is proportional, 0 is no growth.

The bytes are held constant where the number of tensors grows, and the number of tensors where the bytes do.
"""

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.speed._bench import Bench
from benchmarks.timing import interleaved
from lightning_objectives._weights.averages import Averages
from lightning_objectives.averaging import EMA
from lightning_objectives.merging import WSM, merge_checkpoints


def run(bench: Bench) -> None:
    small = bench.tiny
    total = 2**8 if small else 2**20
    grow(
        bench,
        "EMA update: tensors, 1M weights in all",
        (2, 4) if small else (10, 100, 1_000, 10_000),
        lambda n: ema(n, total // n),
    )
    sizes = (2**8, 2**9) if small else (2**20, 2**23, 2**26, 300_000_000)
    grow(bench, "EMA update: weights, 20 tensors", sizes, lambda n: ema(20, n // 20), repeats=5)
    grow(
        bench,
        "one update: averages, 1M weights in 100 tensors",
        (1, 2) if small else (1, 2, 4, 8, 16),
        lambda n: ema(100, total // 100 + 1, averages=n),
    )
    with tempfile.TemporaryDirectory() as folder:
        counts = (1, 2) if small else (1, 4, 16, 64)
        files = checkpoints(Path(folder), counts[-1], 2**6 if small else 2**18)
        grow(
            bench,
            "merging: checkpoints of 8 x 1 MiB, hot",
            counts,
            lambda n: merging(files[:n], Path(folder)),
            repeats=3,
        )
    if not small:
        processes(bench)


def grow(
    bench: Bench, name: str, sizes: Sequence[int], make: Callable[[int], Callable[[], object]], *, repeats: int = 9
) -> None:
    """Time each size in turn and fit the exponent."""
    found = interleaved(
        {str(size): make(size) for size in sizes},
        repeats=1 if bench.tiny else repeats,
        warmup=0 if bench.tiny else 1,
        device=bench.device,
    )
    seconds = [median(times.wall) for times in found.values()]
    exponent = slope([math.log(size) for size in sizes], [math.log(second) for second in seconds])
    last = math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])
    rows = [(f"{size:,}", 1e3 * second) for size, second in zip(sizes, seconds)]
    rows += [("exponent, of all", exponent), ("exponent, of the last two", last)]
    bench.figures(name, ["", "ms, and exponents"], rows)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of the line through the points by least squares.

    >>> slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    2.0
    """
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def ema(tensors: int, size: int, averages: int = 1) -> Callable[[], object]:
    network = nn.ParameterList([nn.Parameter(torch.zeros(max(1, size))) for _ in range(tensors)])
    kept = Averages(network, {f"ema_{i}": EMA() for i in range(averages)})
    return lambda: kept.update(1)


def checkpoints(folder: Path, count: int, size: int) -> list[Path]:
    files = [folder / f"step={step}.safetensors" for step in range(count)]
    for step, file in enumerate(files):
        save_file({f"{i}": torch.full((size,), float(step + i)) for i in range(8)}, file)
    return files


def merging(files: list[Path], folder: Path) -> Callable[[], object]:
    return lambda: merge_checkpoints(files, WSM(), folder / "merged.safetensors")


def processes(bench: Bench) -> None:
    """A step with an average in one process and in two, which both keep it: nothing is sent for it."""
    rows = []
    for count in (1, 2):
        command = [sys.executable, "-m", "benchmarks.speed._two", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        plain, averaged = (float(value) for value in done.stdout.splitlines()[-1].split())
        rows.append(
            (
                f"{count} process{'es' if count > 1 else ''}, a thread each",
                1e3 * plain,
                1e3 * averaged,
                averaged / plain,
            )
        )
    bench.figures(
        "a DDP step of the small CNN, batch 32 a process", ["", "plain, ms", "with an EMA, ms", "ratio"], rows
    )
