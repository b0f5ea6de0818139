"""The training step that plug-ins take, with nothing to do.

`LossBasedReweighting(temperature=inf)` is a method that is never active: the step is taken, and the criterion left as
it is. The difference to no callback is what the seam costs, the step of the MLP being nearly nothing but calls; what
Lightning itself spends on any callback, by calling it some twenty times a step, is that of the empty one.
An average of the weights needs no criterion, and must leave the module's step alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import timm
import torch

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._fits import compare_fits, quiet, trainer_for
from benchmarks.speed._nets import Classifier, Same, images, mlp, rows, seeded
from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks import AverageWeights, ReweightSamples
from lightning_objectives.weighting import LossBasedReweighting

PLAIN, EMPTY = "no callback", "a callback that is empty"
IDLE, BUSY = "ReweightSamples, never active", "ReweightSamples, active"


def run(bench: Bench) -> None:
    variants: dict[str, Callable[[], Sequence[Any]]] = {
        PLAIN: list,
        EMPTY: lambda: [L.Callback()],
        IDLE: lambda: [ReweightSamples(LossBasedReweighting(temperature=float("inf")))],
        BUSY: lambda: [ReweightSamples(LossBasedReweighting(temperature=0.4))],
    }
    compare_fits(
        bench,
        "MLP 64-64-64-10, batch 64",
        lambda: Classifier(seeded(mlp)),
        rows(64),
        variants,
        limit=PLAIN,
        steps=600,
        repeats=9,
        targets=[Target(IDLE, PLAIN, 0.2e-3, "difference")],
    )
    if not bench.tiny:
        compare_fits(
            bench,
            "resnet18 on 32x32, batch 64",
            lambda: Classifier(seeded(lambda: timm.create_model("resnet18", num_classes=10))),
            images(64, 32),
            variants,
            limit=PLAIN,
            steps=6,
            repeats=9,
            skip=1,
            targets=[Target(IDLE, PLAIN, 1.01)],
        )
    untouched(bench)


class Look(L.Callback):
    """Notes, in a step, what stands on the module."""

    def __init__(self) -> None:
        self.patched = True
        self.modes = -1

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.patched = "training_step" in vars(pl_module)
        inner = pl_module.network.forward

        def forward(*args: Any) -> Any:
            self.modes = torch._C._len_torch_function_stack()
            return inner(*args)

        pl_module.network.forward = forward

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        del pl_module.network.forward


def untouched(bench: Bench) -> None:
    """What stands on the module and around the step, by the callbacks of a training."""
    quiet()
    found = []
    for name, made in {
        "AverageWeights(EMA())": lambda: [AverageWeights(EMA())],
        IDLE: lambda: [ReweightSamples(LossBasedReweighting(temperature=float("inf")))],
        BUSY: lambda: [ReweightSamples(LossBasedReweighting(temperature=0.4))],
    }.items():
        look = Look()
        trainer = trainer_for([look, *made()], 3, bench.device)
        trainer.fit(Classifier(mlp()), torch.utils.data.DataLoader(Same(rows(8), 3), batch_size=None))
        found.append((name, look.patched, look.modes))
    bench.figures(
        "what stands around the third step",
        ["", "training_step is taken", "torch function modes"],
        found,
        targets=[("averaging alone: torch function modes", found[0][2], "<=", 0)],
    )
