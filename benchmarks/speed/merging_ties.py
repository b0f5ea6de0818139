"""Four fine-tuned networks and their base into one.

TIES has to know the largest changes of each whole network, and then to merge. As in the row of linear merges, each
variant is a process of its own, and the limit reads all bytes, those of the base too, and keeps none. Cold files were
put out of the page cache first; the rate is promised for them. The linear merge does not read the base. The last table
has the memory at most, without mapped files, in networks: it must stay below two, however many files there are.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.speed._bench import Bench
from benchmarks.speed._memory import peak_of
from benchmarks.speed.merging import forget, read
from benchmarks.timing import Times
from lightning_objectives.kinds import Merge
from lightning_objectives.merging import TIES, WSM, FisherMerging, merge_checkpoints

READ, OURS, PEER = "read only", "TIES", "mergekit's ties, with its start"
KTHVALUE = "TIES by kthvalue, all in memory"
NAMES = (READ, "linear", OURS, "TIES, density 1", "FisherMerging", KTHVALUE)


def run(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        layers = 1 if bench.tiny else 8
        write(place, layers=layers, width=64 if bench.tiny else 2048, count=2 if bench.tiny else 8)
        for cold in (False,) if bench.tiny else (False, True):
            compare(bench, place, cold)
        counts = (1, 2) if bench.tiny else (2, 4, 8)
        one = (place / "base.safetensors").stat().st_size
        rows = [
            (count, *(memory(bench, place, name, count) / one for name in ("linear", OURS, "FisherMerging")))
            for count in counts
        ]
        bench.figures(
            "Memory by the number of files, in networks",
            ["files", "linear", OURS, "FisherMerging"],
            rows,
            targets=[(f"memory of {OURS}, {row[0]} files, in networks", row[2], "<=", 2.0) for row in rows],
        )


def write(place: Path, *, layers: int, width: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {f"{layer}.weight": torch.randn(width, width, generator=generator) for layer in range(layers)}
    save_file(base, place / "base.safetensors")
    save_file({name: value.square() for name, value in base.items()}, place / "fisher.safetensors")
    for step in range(count):
        moved = {name: v + 0.01 * torch.randn(v.shape, generator=generator) for name, v in base.items()}
        save_file(moved, place / f"step={step}.safetensors")


def memory(bench: Bench, place: Path, name: str, count: int) -> float:
    found: dict[str, float] = bench.apart(f"{__name__}:work", name=name, folder=str(place), hot=True, count=count)
    return found["bytes"]


def compare(bench: Bench, place: Path, cold: bool) -> None:
    count = 2 if bench.tiny else 4
    files = [place / "base.safetensors", *(place / f"step={step}.safetensors" for step in range(count))]
    size = sum(file.stat().st_size for file in files)
    names = [name for name in NAMES if not (cold and name == KTHVALUE)]
    times = {name: Times() for name in names}
    for repeat in range(1 if bench.tiny else 3):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            if name == KTHVALUE and repeat:
                continue
            if cold:
                forget([*files, place / "fisher.safetensors"])
            found = bench.apart(f"{__name__}:work", name=name, folder=str(place), hot=not cold, count=count)
            times[name].wall.append(found["seconds"])
            times[name].cpu.append(found["cpu"])
    blank = []
    if not bench.tiny and not cold:
        if shutil.which("mergekit-pytorch", path=str(Path(sys.executable).parent)):
            times[PEER] = mergekit(files[1:], files[0])
        else:
            bench.absent["mergekit"] = "mergekit-pytorch is not installed"
            blank = [PEER]
    title = f"{count} .safetensors files and their base, {size / 2**20:.0f} MiB, {'cold' if cold else 'hot'}"
    bench.keep(title, times, limit=READ, blank=blank, moved=dict.fromkeys(times, size))
    if cold:
        best = {name: min(times[name].wall) for name in names}
        rates = [(name, size / 2**20 / best[name], best[READ] / best[name]) for name in names]
        promised = [(f"{title}: rate of {OURS}, of: {READ}", best[READ] / best[OURS], ">=", 0.25)]
        bench.figures(f"{title}: rate", ["", "MiB/s", "of the reading rate"], rates, targets=promised)


def mergekit(files: list[Path], base: Path) -> Times:
    """Its command, as a user starts it; it trims each tensor by itself."""
    with tempfile.TemporaryDirectory() as out:
        config = Path(out) / "merge.yaml"
        models = "".join(f"  - model: {file}\n    parameters: {{weight: 1.0, density: 0.2}}\n" for file in files)
        config.write_text(f"merge_method: ties\nbase_model: {base}\nmodels:\n{models}dtype: float32\n")
        command = Path(sys.executable).parent / "mergekit-pytorch"
        start = perf_counter()
        done = subprocess.run([command, config, Path(out) / "merged"], capture_output=True, text=True, check=False)
        seconds = perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"mergekit-pytorch failed:\n{done.stderr[-2000:]}")
    return Times([seconds], [seconds])


def work(name: str, folder: str, hot: bool, count: int) -> dict[str, float]:
    """One variant in this process; the files are read before, where they are to be hot."""
    place = Path(folder)
    base, fisher = place / "base.safetensors", place / "fisher.safetensors"
    files = [place / f"step={step}.safetensors" for step in range(count)]
    if hot:
        read([base, fisher, *files])
    methods: dict[str, tuple[Merge, dict[str, Any]]] = {
        "linear": (WSM(), {}),
        OURS: (TIES(), {"base": base}),
        "TIES, density 1": (TIES(density=1.0), {"base": base}),
        "FisherMerging": (FisherMerging(), {"importance": [fisher] * count}),
    }

    def merge() -> None:
        method, given = methods[name]
        with tempfile.TemporaryDirectory() as out:
            merge_checkpoints(files, method, Path(out) / "merged.safetensors", **given)

    others: dict[str, Callable[[], object]] = {
        READ: lambda: read([base, *files]),
        KTHVALUE: lambda: by_kthvalue(files, base),
    }
    start = process_time()
    return {**peak_of(others.get(name, merge)), "cpu": process_time() - start}


def by_kthvalue(files: list[Path], base: Path) -> torch.Tensor:
    """The authors' own way: one vector for each network, and its threshold by ``kthvalue``."""
    from safetensors.torch import load_file

    start = torch.cat([value.flatten() for value in load_file(base).values()])
    changes = torch.stack([torch.cat([v.flatten() for v in load_file(file).values()]) - start for file in files])
    keep = round(0.2 * len(start))
    least = changes.abs().kthvalue(len(start) - keep + 1, dim=1, keepdim=True).values
    changes *= changes.abs() >= least
    agree = torch.where(changes.sum(0).sign() > 0, changes > 0, changes < 0)
    return start + (changes * agree).sum(0) / agree.sum(0).clamp(min=1)
