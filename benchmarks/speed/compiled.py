"""Steps of compiled modules: graphs, breaks and recompiles under each callback.

The network is compiled (`torch.compile(network)`), or the whole training step is. Counted by dynamo from the second
step on, as if nothing had been compiled before (the first is proved, which a graph cannot hold), over five steps, and
again over the last three, where nothing may be compiled any more. The backend is `eager`: what is counted is the
capture, which no backend changes; the time of a step is taken with `inductor`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch._dynamo.utils import counters

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._fits import compare_fits, quiet, trainer_for
from benchmarks.speed._nets import Classifier, Same, mlp, rows, seeded
from lightning_objectives.averaging import EMA
from lightning_objectives.batches import Mixup
from lightning_objectives.callbacks import (
    AddRegularizer,
    AverageWeights,
    Distill,
    ReplaceLoss,
    ReweightSamples,
    TransformBatch,
    TransformGradients,
    WrapHead,
)
from lightning_objectives.distillation import VanillaKD
from lightning_objectives.gradients import ComponentwiseGradClip
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.losses import LDRLoss
from lightning_objectives.regularizers import SpectralDecoupling
from lightning_objectives.weighting import LossBasedReweighting

WRAPPED = "WrapHead(MultiSampleDropout())"
PLAIN, IDLE, BUSY = "no callback", "ReweightSamples, never active", "ReweightSamples, active"


def callbacks() -> dict[str, Callable[[], Sequence[Any]]]:
    """One of each kind that acts in a step."""
    return {
        PLAIN: list,
        "AverageWeights(EMA())": lambda: [AverageWeights(EMA())],
        IDLE: lambda: [ReweightSamples(LossBasedReweighting(temperature=float("inf")))],
        BUSY: lambda: [ReweightSamples(LossBasedReweighting(temperature=0.4))],
        "ReplaceLoss(LDRLoss())": lambda: [ReplaceLoss(LDRLoss())],
        "Distill(VanillaKD())": lambda: [Distill(VanillaKD(), teacher=seeded(mlp))],
        "AddRegularizer(SpectralDecoupling())": lambda: [AddRegularizer(SpectralDecoupling())],
        "TransformBatch(Mixup())": lambda: [TransformBatch(Mixup())],
        "TransformGradients(ComponentwiseGradClip())": lambda: [TransformGradients(clip())],
        WRAPPED: lambda: [WrapHead(MultiSampleDropout())],
    }


def clip() -> ComponentwiseGradClip:
    return ComponentwiseGradClip(**ComponentwiseGradClip.example)


def body(backend: str) -> L.LightningModule:
    """All but the head is compiled: a head inside of a compiled module cannot be taken."""
    return Classifier(Headed(seeded(mlp), backend))


class Headed(torch.nn.Module):
    """A compiled body and a head."""

    def __init__(self, network: Any, backend: str) -> None:
        super().__init__()
        self.body = network[:-1]
        self.fc = network[-1]
        self.body.compile(backend=backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


def whole(backend: str) -> L.LightningModule:
    """The network is compiled, its head too."""
    module = Classifier(seeded(mlp))
    module.network.compile(backend=backend)
    return module


class Step(Classifier):
    """The whole training step is compiled."""

    def __init__(self, backend: str) -> None:
        super().__init__(seeded(mlp))
        self.compute = torch.compile(self._compute, backend=backend)

    def _compute(self, inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.network(inputs), target)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.compute(*batch)


class Count(L.Callback):
    """Begins to count before the second step; the graphs that there are before the last three."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            torch._dynamo.reset()
            counters.clear()
        if batch_idx == 3:
            self.warm = counters["stats"]["unique_graphs"]


def run(bench: Bench) -> None:
    quiet()
    found, broken = [], 0
    made = callbacks()
    modules = {"body": lambda: body("eager"), "network": lambda: whole("eager"), "step": lambda: Step("eager")}
    if bench.tiny:
        made, modules = {BUSY: made[BUSY]}, {"step": modules["step"]}
    for name, make in made.items():
        line = [counted(bench, module(), make()) for module in modules.values()]
        shown = [cell if isinstance(cell, str) else ", ".join(map(str, cell)) for cell in line]
        found.append([name, *shown, *[None] * (3 - len(line))])
        if name != WRAPPED:
            broken += sum(sum(cell[1:]) for cell in line if not isinstance(cell, str))
    bench.figures(
        "graphs, breaks, graphs in the last three steps; by what is compiled",
        ["", "the network without its head", "the network", "the step's mathematics"],
        found,
        targets=[(f"breaks and late graphs, of all but {WRAPPED}", broken, "<=", 0)],
    )
    if not bench.tiny:
        compare_fits(
            bench, "MLP, the step's mathematics compiled by inductor", lambda: Step("inductor"), rows(64),
            {key: made[key] for key in (PLAIN, IDLE, BUSY)}, limit=PLAIN, steps=300, repeats=5, skip=20,
            targets=[Target(IDLE, PLAIN, 0.2e-3, "difference")],
        )  # fmt: skip


def counted(bench: Bench, module: L.LightningModule, plugged: Sequence[Any]) -> tuple[int, int, int] | str:
    """Graphs, breaks and late graphs; what the callback refuses is said so."""
    torch._dynamo.reset()
    counters.clear()
    count = Count()
    trainer = trainer_for([count, *plugged], 6, bench.device)
    try:
        trainer.fit(module, torch.utils.data.DataLoader(Same(rows(64), 6), batch_size=None))
    except ValueError as error:
        return "refused: " + str(error).partition(".")[0][:80]
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    return graphs, breaks, graphs - count.warm
