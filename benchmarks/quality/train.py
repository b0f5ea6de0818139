"""One run: a training as users write it, and the line that is kept of it."""

import json
import logging
import subprocess
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path
from platform import python_version
from typing import Any

import lightning as L
import torch
from torchmetrics import MetricCollection

from benchmarks.quality import teacher
from benchmarks.quality.arms import averages, logged_names, step_callbacks
from benchmarks.quality.data import eval_loader, train_loader
from benchmarks.quality.grid import TASKS, Job, arms
from benchmarks.quality.measures import judged
from benchmarks.quality.nets import Module
from benchmarks.quality.readouts import read_out, snapshots
from lightning_objectives.callbacks import LogMetrics
from lightning_objectives.metrics import NegativeLogLikelihood, TopKAccuracy

POINTS = 12
"""Validations of a training: the points of its curves."""
CHUNKS = 60
"""Points of the curve of the training loss, each the mean of the steps since the last."""
COSTS = Path(__file__).parent / "costs.json"
"""CPU seconds of a step by task and arm, measured before the grid was started."""
QUIET = ("lightning.pytorch", "lightning.fabric", "lightning_utilities.core.rank_zero")


class Watch(L.Callback):
    """The curves: the training loss, what is logged at the validations, and the CPU time that they take."""

    def __init__(self, steps: int, names: dict[str, str]) -> None:
        self.every = max(1, steps // CHUNKS)
        self.names = names
        self.loss: list[float] = []
        self.curves: dict[str, list[float]] = {"step": []}
        self.evaluating = 0.0
        self._losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self._losses.append(outputs["loss"].detach())
        if len(self._losses) == self.every:
            self.loss.append(round(torch.stack(self._losses).mean().item(), 4))
            self._losses = []

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._began = time.process_time()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.curves["step"].append(trainer.global_step)
        for name, value in trainer.callback_metrics.items():
            *_, key, measure = ["raw", *name.split("/")[1:]]
            self.curves.setdefault(f"{self.names.get(key, key)}/{measure}", []).append(round(value.item(), 4))
        self.evaluating += time.process_time() - self._began


def steps_of(job: Job) -> int:
    """The optimizer steps of a run: the task's, or as many as take the time of another arm."""
    task, arm = TASKS[job.task], arms(job.task)[job.arm]
    if arm.as_long_as is None:
        return max(1, round(arm.length * task.steps))
    cost = json.loads(COSTS.read_text())[job.task]
    return max(1, round(task.steps * cost[arm.as_long_as] / cost[arm.searched]))


def execute(job: Job, *, steps: int | None = None, evaluate: bool = True, answers: str = "") -> dict[str, Any]:
    """Train, judge, and say what was done; ``factor`` must be known by now."""
    torch.set_num_threads(1)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    assert job.factor is not None
    task, arm = TASKS[job.task], arms(job.task)[job.arm]
    steps = steps or steps_of(job)
    data = task.data.splits(job.seed)
    L.seed_everything(job.seed, verbose=False)
    network = task.network()  # right after the seed: the same weights for every arm
    recipe = task.recipe.__class__(**{**vars(task.recipe), **arm.recipe, "lr": job.factor * task.recipe.lr})
    module = Module(network, recipe, steps=steps, label_weight=arm.label_weight)
    text = hasattr(data.train, "context")
    if any(part.callback == "Distill" for part in arm.parts):
        data.train.indexed = True  # its answers are kept by sample
    loader = train_loader(data.train, batch_size=task.batch_size, seed=job.seed, steps=steps if text else None)
    val = eval_loader(data.val, batch_size=200 if text else 1000)
    carried = averages(arm.carries, steps)
    curve = Watch(steps, logged_names(carried))
    metrics = {"nll": NegativeLogLikelihood()} | ({} if text else {"top1": TopKAccuracy()})
    riding = ["average"] if arm.carries == "all" else []
    log = LogMetrics(MetricCollection(metrics), weights=riding)
    with tempfile.TemporaryDirectory() as folder:
        kept = [snapshots(steps, folder)] if arm.carries else []
        changes = step_callbacks(
            arm, teacher=teacher.network, cache=answers or teacher.answers(), **teacher.TRANSLATION
        )
        trainer = L.Trainer(
            max_epochs=-1,
            max_steps=steps,
            accelerator="cpu",
            callbacks=[*changes, *carried.values(), *kept, log, curve],
            val_check_interval=max(1, steps // POINTS),
            check_val_every_n_epoch=None,
            limit_val_batches=1 if text else 2,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        torch.manual_seed(job.seed + 1)
        began = time.process_time()
        trainer.fit(module, loader, val)
        fit = time.process_time() - began - curve.evaluating
        test = eval_loader(data.test, batch_size=200 if text else 1000) if job.phase == "final" else None
        final: dict[str, Any] = {}
        if evaluate:
            plain = train_loader(data.train, batch_size=500, seed=0) if not text else None
            found = read_out(module, carried, folder if kept else None, plain, few=arm.carries == "few")
            for name, network in found:
                if name != "raw" and test is not None:  # enough for a temperature
                    val = eval_loader(data.val, rows=3000)
                final[name] = judged(network, val, test)
    return {
        "key": job.key,
        **{name: getattr(job, name) for name in ("claim", "task", "arm", "seed", "phase", "factor")},
        "settings": arm.settings(),
        "recipe": vars(recipe),
        "steps": steps,
        "seconds": {"training": round(fit, 2), "all": round(time.process_time() - began, 2)},
        "loss": {"every": curve.every, "values": curve.loss},
        "curves": curve.curves,
        "final": final,
        **described(),
    }


@cache
def described() -> dict[str, Any]:
    """What it was run with; asked once, when the code was read."""
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    versions = {"python": python_version(), "torch": torch.__version__, "lightning": L.__version__}
    return {"versions": versions, "revision": said.strip(), "command": "python -m benchmarks.quality run"}
