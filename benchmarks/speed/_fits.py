"""Steps of `Trainer.fit` under different callbacks, timed in turn."""

import gc
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from time import perf_counter, process_time
from typing import Any

import lightning as L
import torch

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._nets import Same
from benchmarks.timing import Times


class Clock(L.Callback):
    """The time from the begin of each step to that of the next."""

    def __init__(self, device: str, skip: int) -> None:
        self.device = device
        self.skip = skip
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.wall.append(perf_counter())
        self.cpu.append(process_time())

    def steps(self) -> tuple[float, float]:
        """The median step, on the wall and of the process."""
        found = ([b - a for a, b in pairwise(clock)][self.skip :] for clock in (self.wall, self.cpu))
        wall, cpu = (median(seconds) for seconds in found)
        return wall, cpu


def quiet() -> None:
    """No lines from Lightning."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")


def trainer_for(callbacks: Sequence[Any], steps: int, device: str, **settings: Any) -> L.Trainer:
    """A Trainer that writes and shows nothing."""
    accelerator = "cpu" if device == "cpu" else "gpu"
    return L.Trainer(
        max_steps=steps,
        max_epochs=1,
        callbacks=list(callbacks),
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


def timed_fit(
    callbacks: Sequence[Any], module: Callable[[], L.LightningModule], batch: Any, *, steps: int, skip: int, device: str
) -> tuple[float, float]:
    """The median step of one fit, on the wall and of the process."""
    clock = Clock(device, skip)
    trainer, made = trainer_for([clock, *callbacks], steps + 1, device), module()
    data = torch.utils.data.DataLoader(Same(batch, steps + 1), batch_size=None)
    gc.collect()
    gc.disable()
    try:
        trainer.fit(made, data)
    finally:
        gc.enable()
    return clock.steps()


def compare_fits(
    bench: Bench,
    name: str,
    module: Callable[[], L.LightningModule],
    batch: Any,
    variants: Mapping[str, Callable[[], Sequence[Any]]],
    *,
    limit: str,
    steps: int,
    repeats: int,
    skip: int = 3,
    targets: Sequence[Target] = (),
    blank: Sequence[str] = (),
    wrap: Mapping[str, Callable[[], L.LightningModule]] | None = None,
    unwrap: Sequence[str] = (),
) -> None:
    """Fit with each variant's callbacks in turn; a repeat is the median step of one fit.

    Args:
        bench: the row.
        name: of the table.
        module: makes the module.
        batch: what every step is given.
        variants: make the callbacks.
        limit: the variant without any.
        steps: of a fit.
        repeats: fits of each variant.
        skip: steps at the beginning of a fit that do not count.
        targets: what is promised.
        blank: variants that could not be run.
        wrap: other modules for some of the variants.
        unwrap: the variants that get the item alone of a batch with an index.
    """
    if bench.tiny:
        steps, repeats, skip = 3, 1, 1
    quiet()
    times = {key: Times() for key in variants}
    order = list(variants)
    for repeat in range(repeats + (not bench.tiny)):
        for key in order:
            make, given = (wrap or {}).get(key, module), batch.item if key in unwrap else batch
            wall, cpu = timed_fit(variants[key](), make, given, steps=steps, skip=skip, device=bench.device)
            if repeat or bench.tiny:
                times[key].wall.append(wall)
                times[key].cpu.append(cpu)
        order = [*order[1:], order[0]]
    bench.keep(name, times, limit=limit, targets=targets, blank=blank)
