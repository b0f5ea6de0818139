"""A step with all five plugged in, and what is left over the sum of its parts.

Each is also plugged in alone: what all five add is compared with the sum of what each adds. The three that change the
loss are plugged in by two as well, which names what is left over: what these do to each other. The profile is that of
steps with all five; operators by the time that they take themselves.
"""

import tempfile
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed._bench import Bench
from benchmarks.speed._fits import compare_fits, quiet, trainer_for
from benchmarks.speed._nets import Classifier, Same, images, seeded, small_cnn
from lightning_objectives.callbacks import Distill, MergeCheckpoints, ReweightSamples, WrapHead
from lightning_objectives.callbacks.named import BEMACallback
from lightning_objectives.distillation import DualHead
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.merging import WSM
from lightning_objectives.weighting import LossBasedReweighting

PLAIN, ALL = "no callback", "all five"


def run(bench: Bench) -> None:
    size = 8 if bench.tiny else 28
    batch = images(4 if bench.tiny else 64, size, channels=1)
    with tempfile.TemporaryDirectory() as folder:
        parts = five(folder)
        variants: dict[str, Callable[[], Sequence[Any]]] = {
            PLAIN: list,
            **{n: lambda m=m: [m()] for n, m in parts.items()},
        }
        pairs = {f"{a} beside {b}": (a, b) for a, b in combinations(list(parts)[:3], 2)}
        variants |= {name: lambda pair=pair: [parts[part]() for part in pair] for name, pair in pairs.items()}
        variants[ALL] = lambda: [make() for make in parts.values()]
        compare_fits(
            bench, "small CNN, batch 64", lambda: Classifier(seeded(small_cnn)), batch, variants,
            limit=PLAIN, steps=30, repeats=5,
        )  # fmt: skip
        table = bench.tables[-1]["wall"]
        plain = median(table[PLAIN])
        added = {name: median(seconds) - plain for name, seconds in table.items() if name != PLAIN}
        alone = {name: added[name] for name in parts}
        rows = [(name, 1e3 * value) for name, value in alone.items()]
        rows += [("the sum of them", 1e3 * sum(alone.values())), (ALL, 1e3 * added[ALL])]
        rows += [("left over", 1e3 * (added[ALL] - sum(alone.values())))]
        rows += [(f"left over: {n}", 1e3 * (added[n] - sum(alone[part] for part in pair))) for n, pair in pairs.items()]
        bench.figures("added to the step, ms", ["", "ms"], rows)
        profiled(bench, variants[ALL], batch)


def five(folder: str) -> dict[str, Callable[[], Any]]:
    """The callbacks, by name; the teacher has the student's size."""
    return {
        "WrapHead(MultiSampleDropout())": lambda: WrapHead(MultiSampleDropout()),
        "ReweightSamples(LossBasedReweighting())": lambda: ReweightSamples(LossBasedReweighting()),
        "Distill(DualHead())": lambda: Distill(DualHead(), teacher=seeded(small_cnn)),
        "BEMACallback()": BEMACallback,
        "MergeCheckpoints(WSM()), every 10 steps": lambda: MergeCheckpoints(
            WSM(), last=2, every_n_steps=10, directory=Path(folder) / "merge"
        ),
    }


def profiled(bench: Bench, callbacks: Callable[[], Sequence[Any]], batch: Any) -> None:
    """The operators of a few steps."""
    quiet()
    steps = 2 if bench.tiny else 12
    trainer = trainer_for(callbacks(), steps, bench.device)
    data = torch.utils.data.DataLoader(Same(batch, steps), batch_size=None)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device != "cpu" else [])]
    with profile(activities=activities) as found:
        trainer.fit(Classifier(seeded(small_cnn)), data)
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    rows = [
        (e.key[:60], e.count / steps, e.self_cpu_time_total / steps / 1e3, e.self_cpu_time_total / total)
        for e in events[:15]
    ]
    bench.figures(f"operators of {steps} steps with all five", ["", "calls a step", "ms a step", "share"], rows)
