"""Ten checkpoints into one.

Each variant is a process of its own: the seconds are those of the work without the imports, the memory what is resident
and stands in no file (anonymous), at most, above what the imports took. The limit reads all bytes and keeps none. Files
are hot (read before) or cold (put out of the page cache first, where the system allows it; a cache of
the host may still serve them). Ours writes the merged file as well, and waits until it is on the disk; mergekit writes
too, the others leave a dictionary in memory. So there is a second limit: all bytes read, and one file written and
waited for. The rate is promised for cold files, where the disk is the limit.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.speed._bench import Bench
from benchmarks.speed._memory import peak_of
from benchmarks.timing import Times
from lightning_objectives.merging import WSM, merge_checkpoints

READ, OURS = "read only", "merge_checkpoints"
BOTH = "read, and one file written"
SNIPPETS = ("load all, stack, mean", "one at a time", "mapped, one at a time")


def run(bench: Bench) -> None:
    # The files of one kind at a time, in half of the free disk at most: the large model is made smaller there.
    free = shutil.disk_usage(tempfile.gettempdir()).free
    large = min(302_000_000, free // (2 * 4 * 11)) if not bench.tiny else 0
    with tempfile.TemporaryDirectory() as folder:
        sizes: list[tuple[str, int, bool, int]] = [("small" if bench.tiny else "resnet50", 0, False, 5)]
        if not bench.tiny:
            sizes += [("resnet50", 0, True, 3), ("transformer", large, True, 1)]
        for kind, parameters, cold, repeats in sizes:
            for suffix in ("safetensors", "ckpt"):
                place = Path(folder) / f"{kind}-{suffix}"
                if not place.exists():
                    write(place, kind, parameters, suffix, count=3 if bench.tiny else 10)
                compare(bench, place, kind, suffix, cold, 1 if bench.tiny else repeats)
                if kind == "transformer":
                    shutil.rmtree(place)


def state_of(kind: str, parameters: int) -> dict[str, torch.Tensor]:
    """The weights of one checkpoint."""
    if kind == "small":
        return {f"layer{i}.weight": torch.randn(64, 64) for i in range(4)}
    if kind == "resnet50":
        return dict(timm.create_model("resnet50").state_dict())
    width = 1024  # the shapes of a decoder of that width, as many layers as there are parameters for, and no words
    shapes = {"qkv": (3 * width, width), "out": (width, width), "up": (4 * width, width), "down": (width, 4 * width)}
    layers = max(1, parameters // sum(a * b for a, b in shapes.values()))
    return {f"{i}.{name}.weight": torch.randn(shape) for i in range(layers) for name, shape in shapes.items()}


def write(place: Path, kind: str, parameters: int, suffix: str, count: int) -> None:
    place.mkdir()
    state = state_of(kind, parameters)
    for step in range(count):
        state = {key: value + 0.01 if value.is_floating_point() else value for key, value in state.items()}
        if suffix == "safetensors":
            save_file(state, place / f"step={step}.safetensors")
        else:
            frame = {"pytorch-lightning_version": "2.6.6", "global_step": step, "epoch": 0, "state_dict": state}
            torch.save(frame, place / f"step={step}.ckpt")


def compare(bench: Bench, place: Path, kind: str, suffix: str, cold: bool, repeats: int) -> None:
    files = sorted(place.iterdir())
    size = sum(file.stat().st_size for file in files)
    names = [READ, BOTH, OURS]
    if not cold or kind == "resnet50":
        names += SNIPPETS if suffix == "ckpt" else ("safetensors, tensor by tensor",)
    else:
        names += ["mapped, one at a time"] if suffix == "ckpt" else ["safetensors, tensor by tensor"]
    times = {name: Times() for name in names}
    peaks = dict.fromkeys(names, 0)
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            if cold:
                forget(files)
            found = bench.apart(f"{__name__}:work", name=name, folder=str(place), hot=not cold)
            times[name].wall.append(found["seconds"])
            times[name].cpu.append(found["cpu"])
            peaks[name] = max(peaks[name], found["bytes"])
    title = f"{kind}, {len(files)} .{suffix} files, {size / 2**20:.0f} MiB, {'cold' if cold else 'hot'}"
    blank = []
    if suffix == "safetensors" and not bench.tiny and (kind == "resnet50" and not cold):
        if shutil.which("mergekit-pytorch", path=str(Path(sys.executable).parent)):
            times["mergekit-pytorch, with its start"] = mergekit(files)
        else:
            bench.absent["mergekit"] = "mergekit-pytorch is not installed"
            blank = ["mergekit-pytorch, with its start"]
    one = size // len(files)
    moved = {name: size + one * (name in (BOTH, OURS) or "mergekit" in name) for name in times}
    bench.keep(title, times, limit=READ, blank=blank, moved=moved)
    rates = {name: min(times[name].wall) / min(times[OURS].wall) for name in (READ, BOTH)}
    least = 0.9 if suffix == "safetensors" else 0.8
    bench.figures(
        f"{title}: memory",
        ["", "anonymous MiB at most", "in models"],
        [(name, peaks[name] / 2**20, peaks[name] / one) for name in names],
        targets=[
            *([(f"{title}: rate, of: {name}", rate, ">=", least) for name, rate in rates.items()] if cold else []),
            (f"{title}: anonymous memory, in models", peaks[OURS] / one, "<=", 1.1),
        ],
    )


def forget(files: list[Path]) -> None:
    """Put files out of the page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def mergekit(files: list[Path]) -> Times:
    """Its command, as a user starts it: two thirds of it are imports."""
    with tempfile.TemporaryDirectory() as out:
        config = Path(out) / "merge.yaml"
        models = "".join(f"  - model: {file}\n    parameters: {{weight: 1.0}}\n" for file in files)
        config.write_text(f"merge_method: linear\nmodels:\n{models}dtype: float32\n")
        start = perf_counter()
        command = Path(sys.executable).parent / "mergekit-pytorch"
        done = subprocess.run([command, config, Path(out) / "merged"], capture_output=True, text=True, check=False)
        seconds = perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"mergekit-pytorch failed:\n{done.stderr[-2000:]}")
    return Times([seconds], [seconds])


def work(name: str, folder: str, hot: bool) -> dict[str, float]:
    """One variant in this process; the files are read before, where they are to be hot."""
    from time import process_time

    files = sorted(Path(folder).iterdir())
    if hot:
        read(files)
    variant: dict[str, Any] = {
        READ: read,
        BOTH: read_and_write,
        OURS: ours,
        "load all, stack, mean": load_all,
        "one at a time": one_at_a_time,
        "mapped, one at a time": mapped,
        "safetensors, tensor by tensor": tensor_by_tensor,
    }
    start = process_time()
    return {**peak_of(lambda: variant[name](files)), "cpu": process_time() - start}


def read(files: list[Path]) -> None:
    buffer = bytearray(2**22)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def read_and_write(files: list[Path]) -> None:
    read(files)
    size, piece = files[0].stat().st_size, memoryview(bytes(2**22))
    with tempfile.TemporaryDirectory() as out, Path(out, "one").open("wb", buffering=0) as written:
        for start in range(0, size, len(piece)):
            written.write(piece[: size - start])
        os.fsync(written.fileno())


def ours(files: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as out:
        merge_checkpoints(files, WSM(), Path(out) / f"merged{files[0].suffix}")


def _state(file: Path, mmap: bool) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(file, mmap=mmap, weights_only=True)["state_dict"]
    return {key: value for key, value in found.items() if value.is_floating_point()}


def load_all(files: list[Path]) -> dict[str, torch.Tensor]:
    states = [_state(file, False) for file in files]
    return {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}


def _accumulate(files: list[Path], mmap: bool) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for file in files:
        for key, value in _state(file, mmap).items():
            if key in total:
                total[key].add_(value)
            else:
                total[key] = value.clone()
    return {key: value.div_(len(files)) for key, value in total.items()}


def one_at_a_time(files: list[Path]) -> dict[str, torch.Tensor]:
    return _accumulate(files, False)


def mapped(files: list[Path]) -> dict[str, torch.Tensor]:
    return _accumulate(files, True)


def tensor_by_tensor(files: list[Path]) -> dict[str, torch.Tensor]:
    opened = [safe_open(file, framework="pt") for file in files]
    total = {}
    for key in opened[0].keys():  # noqa: SIM118  # it is no dictionary
        first = opened[0].get_tensor(key)
        if first.is_floating_point():
            total[key] = first.clone()
            for file in opened[1:]:
                total[key].add_(file.get_tensor(key))
            total[key].div_(len(opened))
    return total
