"""Compares the speed of this revision with an earlier one: ``python -m benchmarks.against REVISION [ROW ...]``.

Both revisions run in turn in one process, so that whatever slows the machine down slows both. The earlier one is
checked out to a scratch folder and imported under another name. Where a large network lies in memory changes its times
by a third, so each variant is built twice, this revision first and then the earlier one first, and a repeat gives the
mean ratio of both, now to then. Shown is the median with the interval that holds it in 95 of 100 resamplings. A variant
is slower if the whole interval lies above the tolerance; the program then ends with 1.
"""

import argparse
import importlib
import io
import math
import random
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.speed._bench import ROOT, Bench
from benchmarks.speed._fits import quiet, timed_fit
from benchmarks.timing import timed

ROWS = "ema_update trainer_step seam swap compiled".split()
PEERS = ("Lightning", "torch ", "timm", "ema-pytorch", "torch-ema", "TRL", "one lerp_", "two flat", "a callback that")
"""What the names of variants begin with that hold none of our code."""
THEN = "_then"
"""What the earlier revision's packages are called behind their names."""


class Unmeasured(float):
    """Stands for what a row measures in another process, be it one number or two."""

    def __iter__(self) -> Iterator[float]:
        return iter((0.0, 0.0))


class Recorder(Bench):
    """Keeps the variants of a row instead of timing them."""

    def __init__(self, row: str) -> None:
        super().__init__(row)
        self.variants: dict[tuple[str, str], Callable[[], float]] = {}

    def measure(self, name: str, runs: Mapping[str, Callable[[], object]], **settings: Any) -> Any:
        for key, run in runs.items():
            self.variants[name, key] = lambda run=run: timed(run, self.device)[0]  # type: ignore[misc]  # a default

    def record_fits(
        self,
        bench: Bench,
        name: str,
        module: Callable[[], Any],
        batch: Any,
        variants: Mapping[str, Callable[[], Sequence[Any]]],
        *,
        steps: int,
        skip: int = 3,
        **settings: Any,
    ) -> None:
        """Stands in for :func:`benchmarks.speed._fits.compare_fits`."""

        wrap, unwrap = settings.get("wrap") or {}, settings.get("unwrap", ())
        for key, make in variants.items():
            modules, given = wrap.get(key, module), batch.item if key in unwrap else batch
            how = {"steps": steps, "skip": skip, "device": self.device}

            def fit(make: Any = make, modules: Any = modules, given: Any = given, how: Any = how) -> float:
                return timed_fit(make(), modules, given, **how)[0]

            self.variants[name, key] = fit

    def figures(self, *args: Any, **kwargs: Any) -> None:
        """Counts are no times."""

    def apart(self, function: str, **settings: Any) -> Any:
        """Nor is the memory of another process."""
        return Unmeasured()


def check_out(revision: str, folder: Path) -> None:
    """Put the packages of a revision into a folder, under their names followed by :data:`THEN`."""
    command = ["git", "archive", revision, "lightning_objectives", "benchmarks"]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    for file in folder.rglob("*.py"):
        text = re.sub(r"\blightning_objectives\b", f"lightning_objectives{THEN}", file.read_text())
        file.write_text(re.sub(r"\bbenchmarks\.(?=speed|timing|page)", f"benchmarks{THEN}.", text))
    for package in ("lightning_objectives", "benchmarks"):
        (folder / package).rename(folder / f"{package}{THEN}")


def variants_of(row: str, package: str) -> dict[tuple[str, str], Callable[[], float]]:
    """The variants of a row that hold our code, by table and name: each call gives the seconds of one run."""
    module: Any = importlib.import_module(f"{package}.speed.{row}")
    recorder = Recorder(row)
    for name, instead in (("compare_fits", recorder.record_fits), ("counted", lambda *_: "")):
        if hasattr(module, name):
            setattr(module, name, instead)
    module.run(recorder)
    return {key: run for key, run in recorder.variants.items() if not key[1].startswith(PEERS)}


def ratios(now: Callable[[], float], then: Callable[[], float], *, repeats: int) -> list[float]:
    """Times of now by times of then, pair by pair; the one that runs first changes from pair to pair."""
    now(), then()
    pairs = []
    for repeat in range(repeats):
        first, second = (now, then) if repeat % 2 else (then, now)
        one, other = first(), second()
        pairs.append(one / other if repeat % 2 else other / one)
    return pairs


def interval(values: Sequence[float], *, resamples: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the median, by resampling."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(resamples))
    return medians[resamples // 40], medians[-resamples // 40]


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.against", description=__doc__)
    parser.add_argument("revision")
    parser.add_argument("rows", nargs="*", default=ROWS, metavar="ROW")
    parser.add_argument("--repeats", type=int, default=21, help="pairs of each variant")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    quiet()
    slower = []
    with tempfile.TemporaryDirectory() as scratch:
        check_out(given.revision, Path(scratch))
        sys.path.insert(0, scratch)
        for row in given.rows:
            now, then, then_first, now_second = (variants_of(row, f"benchmarks{name}") for name in ("", THEN, THEN, ""))
            for key in [key for key in now if key in then]:
                with torch.no_grad() if "update" in row or row == "swap" else torch.enable_grad():
                    one = ratios(now[key], then[key], repeats=given.repeats)
                    other = ratios(now_second[key], then_first[key], repeats=given.repeats)
                pairs = [math.sqrt(a * b) for a, b in zip(one, other)]
                low, high = interval(pairs)
                verdict = "SLOWER" if low > 1 + given.tolerance else ""
                slower += [key] if verdict else []
                print(
                    f"{row}: {key[0]}: {key[1]:<40} {median(pairs):.3f} [{low:.3f}, {high:.3f}] {verdict}", flush=True
                )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
