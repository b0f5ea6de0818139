"""What a row measures with: times in turn, peers that may be missing, targets, and where all of it is kept."""

import importlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.speed._memory import apart
from benchmarks.timing import Times, interleaved

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
_LIBRARIES = (
    "torch lightning timm torchmetrics safetensors numpy ema-pytorch torch-ema trl transformers mergekit "
    "cut-cross-entropy"
).split()


@dataclass(frozen=True)
class Target:
    """What is promised of a table: ``of`` against ``over``, as a ratio of medians or a difference; or ``of`` alone."""

    of: str
    over: str
    at_most: float
    kind: str = "ratio"
    """``ratio``, ``difference`` or ``seconds``."""


@dataclass
class Bench:
    """One row that is being measured."""

    row: str
    tiny: bool = False
    """As small as the code allows, to see that it runs; nothing that is measured so means anything."""
    device: str = "cpu"
    threads: int = 2
    tables: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def peer(self, module: str) -> Any:
        """The module of another library; None where it cannot be had, and the page then says so."""
        try:
            return importlib.import_module(module)
        except Exception as error:  # a library may fail in any way when it is imported beside others
            self.absent[module.partition(".")[0]] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            return None

    def measure(
        self,
        name: str,
        runs: Mapping[str, Callable[[], object]],
        *,
        limit: str = "",
        targets: Sequence[Target] = (),
        repeats: int = 30,
        warmup: int = 3,
        blank: Sequence[str] = (),
        per_call: int = 1,
        moved: Mapping[str, int] | None = None,
    ) -> dict[str, Times]:
        """Time variants in turn.

        Args:
            name: of the table.
            runs: the variants.
            limit: the variant that ratios are taken to.
            targets: what is promised.
            repeats: of each variant.
            warmup: repeats that are not counted.
            blank: variants that could not be run here.
            per_call: how many pieces of work a call does; times are kept for one.
            moved: the bytes that variants have to read and write at least, from which the page tells a rate.
        """
        if self.tiny:
            repeats, warmup = 1, 0
        times = interleaved(runs, repeats=repeats, warmup=warmup, device=self.device)
        for found in times.values():
            found.wall = [seconds / per_call for seconds in found.wall]
            found.cpu = [seconds / per_call for seconds in found.cpu]
        self.keep(name, times, limit=limit, targets=targets, blank=blank, moved=moved)
        return times

    def keep(
        self,
        name: str,
        times: Mapping[str, Times],
        *,
        limit: str = "",
        targets: Sequence[Target] = (),
        blank: Sequence[str] = (),
        moved: Mapping[str, int] | None = None,
    ) -> None:
        """Keep times that were taken in turn by other means."""
        table: dict[str, Any] = {"name": name, "limit": limit, "targets": [vars(target) for target in targets]}
        table["wall"] = {key: [float(f"{s:.4g}") for s in found.wall] for key, found in times.items()}
        table["cpu"] = {key: [float(f"{s:.4g}") for s in found.cpu] for key, found in times.items()}
        table["blank"], table["moved"] = list(blank), dict(moved or {})
        self.tables.append(table)
        print(f"\n{self.row}: {name}")
        base = median(times[limit].wall) if limit else None
        for key, found in times.items():
            ratio = f"{median(found.wall) / base:9.3f}" if base else ""
            print(f"  {key:<52}{1e3 * median(found.wall):12.4g} ms{ratio}")
        for key in blank:
            print(f"  {key:<52}{'not run':>12}")

    def figures(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        targets: Sequence[tuple[str, float, str, float]] = (),
    ) -> None:
        """Keep what is no time: bytes, values, counts.

        Args:
            name: of the table.
            columns: its head.
            rows: the first entry of each is its name.
            targets: what is promised: in words, the figure, ``<=`` or ``>=``, and the bound.
        """
        kept = [[float(f"{v:.6g}") if isinstance(v, float) else v for v in row] for row in rows]
        self.tables.append({"name": name, "columns": list(columns), "rows": kept, "promised": [*targets]})
        print(f"\n{self.row}: {name}\n  " + " | ".join(columns))
        for row in kept:
            print("  " + " | ".join(str(value) for value in row))

    def apart(self, function: str, *, threads: int | None = None, **settings: Any) -> Any:
        """Call ``module:function`` in a process of its own; in this one where all is tiny."""
        if self.tiny:
            module, _, name = function.partition(":")
            return getattr(importlib.import_module(module), name)(**settings)
        return apart(function, threads or self.threads, **settings)

    def note(self, text: str) -> None:
        """Something that the page must say."""
        self.notes.append(text)
        print(f"  note: {text}")


def provenance(bench: Bench, command: str) -> dict[str, Any]:
    """Where, when and with what a row was measured."""
    return {
        "row": bench.row,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "revision": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--", "lightning_objectives", "benchmarks/*.py")),
        "device": bench.device if bench.device == "cpu" else torch.cuda.get_device_name(),
        "threads": bench.threads,
        "machine": machine(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": versions(),
    }


def machine() -> str:
    """The processor, its cores and the memory."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return f"{cpu or platform.processor()}, {os.cpu_count()} cores, {kib / 2**20:.0f} GiB, {platform.system()}"


def versions() -> dict[str, str]:
    """The libraries that are there."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _git(*args: str) -> str:
    found = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()
