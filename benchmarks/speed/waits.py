"""How often a training step waits for the GPU, under each callback and each method, and what the GPU computes.

PyTorch reports each call for which the CPU waits for the device (`torch.cuda.set_sync_debug_mode`). Counted are those
from the library's own lines, from the third step on: the first two may wait, to find out where a batch's samples lie.
What Lightning itself waits for (batches that it moves, values that it logs) is not counted. Every training is repeated
on the CPU, without dropout: the last column is the largest difference of a weight afterwards. Methods that draw on the
device draw other numbers there; in steep trainings (CentreLoss, GradNormStabilizer, MutualInformationDistillation) a
change of the first weights by a millionth makes as large a difference on the CPU alone.
"""

import sys
import warnings
from collections import Counter
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_objectives
from benchmarks.speed._bench import Bench
from benchmarks.speed._fits import quiet
from lightning_objectives.testing.conformance import Case, PlugIn, every_method, exemplars

PACKAGE = lightning_objectives.__path__[0]
FREE = 2
"""The steps whose waits do not count."""
CLOSE = 1e-4
"""How near to the CPU's the weights must be to be called the same."""


class Waits(L.Callback):
    """Lets PyTorch report its waits after the first steps, and not where an epoch ends."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= FREE:
            self.steps += 1
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def fit(case: Case, plug_in: PlugIn, device: str) -> tuple[Counter[str], int, dict[str, Tensor]]:
    """The waits by the library's line that caused them, the steps in which they were counted, and the weights."""
    lines: Counter[str] = Counter()
    watch, callbacks = Waits(), plug_in.make(case)
    trainer = case.trainer(*[watch] * (device == "cuda"), *callbacks, max_epochs=1, accelerator=device)
    loader = DataLoader(case.loader_for(callbacks).dataset, batch_size=4, drop_last=True)
    L.seed_everything(0, verbose=False)
    module = case.module()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # the devices draw other masks
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: lines.update(_line() if "synchroniz" in str(message) else ())
        try:
            trainer.fit(module, loader)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return lines, watch.steps, {name: value.cpu() for name, value in module.state_dict().items()}


def _line() -> list[str]:
    """The innermost line of the library that is being run; nothing where the call is another's."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE) and "testing" not in file:
            return [f"{file.removeprefix(PACKAGE)[1:]}, {frame.f_code.co_name}"]
        frame = frame.f_back
    return []


def _largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def row_of(case: Case, plug_in: PlugIn, device: str) -> list[Any]:
    """The line of one plug-in; with the error where it cannot be trained on this module."""
    if device == "cpu":
        return [str(plug_in), None, "", None]
    try:
        lines, steps, weights = fit(case, plug_in, "cuda")
        difference = _largest_difference(weights, fit(case, plug_in, "cpu")[2])
    except Exception as error:  # the other rows are to be measured, and the page is to show it
        return [str(plug_in), None, f"not tried: {error}".splitlines()[0], None]
    where = "; ".join(f"{line} ({count / steps:g} a step)" for line, count in lines.items())
    return [str(plug_in), sum(lines.values()) / steps, where, difference]


def run(bench: Bench) -> None:
    quiet()
    case = Case()
    if bench.device == "cpu":
        bench.note("Not measured: the CPU waits for nothing. Run this row with `--device cuda`.")
    for name, plug_ins in (("each callback", exemplars()), ("each method", every_method())):
        rows = [row_of(case, plug_in, bench.device) for plug_in in plug_ins]
        shown = [row for row in rows if not is_as_expected(row)]
        told = f"{name.capitalize()}: {len(rows)} tried. {len(rows) - len(shown)} wait for nothing and give"
        bench.note(f"{told} the CPU's weights to {CLOSE:g}.")
        bench.figures(f"{name}: the others", ["", "waits a step", "where", "difference to the CPU"], shown)


def is_as_expected(row: list[Any]) -> bool:
    """Whether a plug-in waits for nothing and gives the weights that it gives on the CPU."""
    _, waits, _, difference = row
    return waits == 0 and difference <= CLOSE
