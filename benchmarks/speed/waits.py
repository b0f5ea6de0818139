"""How often a training step waits for the GPU, under each callback.

PyTorch reports each call for which the CPU waits for the device (`torch.cuda.set_sync_debug_mode`). Counted are those
from the library's own lines, from the second step on. What Lightning itself waits for (batches that it moves, values
that it logs) is not counted. On the CPU there is nothing to wait for.
"""

import sys
import warnings
from collections import Counter
from typing import Any

import lightning as L
import torch

import lightning_objectives
from benchmarks.speed._bench import Bench
from benchmarks.speed._fits import quiet
from lightning_objectives.testing.conformance import Case, exemplars

PACKAGE = lightning_objectives.__path__[0]


class Waits(L.Callback):
    """Lets PyTorch report its waits from the second step on."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx:
            self.steps += 1
            torch.cuda.set_sync_debug_mode("warn")


def waits_of(case: Case, callbacks: list[Any]) -> tuple[Counter[str], int]:
    """The waits by the library's line that caused them, and the number of steps in which they were counted."""
    lines: Counter[str] = Counter()
    watch = Waits()
    trainer = case.trainer(watch, *callbacks, max_epochs=1, accelerator="gpu", log_every_n_steps=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: lines.update(_line() if "synchroniz" in str(message) else ())
        try:
            trainer.fit(case.module(), case.loader_for(callbacks))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return lines, watch.steps


def _line() -> list[str]:
    """The innermost line of the library that is being run; nothing where the call is another's."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE) and "testing" not in file:
            return [f"{file.removeprefix(PACKAGE)[1:]}, {frame.f_code.co_name}"]
        frame = frame.f_back
    return []


def run(bench: Bench) -> None:
    quiet()
    case, rows = Case(), []
    if bench.device == "cpu":
        bench.note("Not measured: the CPU waits for nothing. Run this row with `--device cuda`.")
    for plug_in in exemplars():
        if bench.device == "cpu":
            rows.append([str(plug_in), None, ""])
            continue
        lines, steps = waits_of(case, plug_in.make(case))
        where = "; ".join(f"{line} ({count / steps:g} a step)" for line, count in lines.items())
        rows.append([str(plug_in), sum(lines.values()) / steps, where])
    bench.figures("waits for the device", ["", "a step", "where"], rows)
