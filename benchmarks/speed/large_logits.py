"""Training steps of a language model with 1,024 tokens and 32,000 words, under losses, distances and penalties.

The network is an embedding and a head, so that a step is little else than its logits (131 MB) and what is done to them.
The limit is the plain step, whose criterion is cross entropy. A distance to a teacher needs the teacher's forward pass
and its logits too. "As a whole" is the same callback without chunks of rows,
and with all stacks at once. The memory is that of a process of its own
for each variant.
"""

from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._fits import compare_fits, quiet, trainer_for
from benchmarks.speed._memory import Peak
from benchmarks.speed._nets import Same
from lightning_objectives._step import chunks
from lightning_objectives.callbacks import AddRegularizer, Distill, ReplaceLoss, WrapHead
from lightning_objectives.distillation import DualHead, VanillaKD
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.losses import FocalLoss, LDRLoss
from lightning_objectives.regularizers import LogPartitionPenalty

PLAIN, WHOLE = "the plain step", ", as a whole"
TARGETS = {
    "ReplaceLoss(LDRLoss())": (1.4, 0.2),
    "ReplaceLoss(FocalLoss())": (1.4, 0.2),
    "AddRegularizer(LogPartitionPenalty())": (None, 0.2),
    "Distill(VanillaKD())": (None, 1.3),
    "Distill(DualHead())": (None, 3.3),
    "WrapHead(MultiSampleDropout(num_samples=4))": (None, 2.5),
}
"""At most so many times the plain step, and so many matrices of logits beyond it."""


class Words(L.LightningModule):
    """An embedding and a head."""

    def __init__(self, words: int, width: int = 64) -> None:
        super().__init__()
        self.body, self.head = nn.Embedding(512, width), nn.Linear(width, words)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.body(tokens))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        tokens, following = batch
        return F.cross_entropy(self(tokens), following)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class MemoryFromStep(L.Callback):
    """The peak from the third step on, when all that lives through the steps is there."""

    def __init__(self, device: str) -> None:
        self.peak = Peak(device)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.peak.__enter__()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.peak.__exit__()


def callbacks_of(name: str, words: int) -> list[Any]:
    made = {
        PLAIN: lambda: [],
        "ReplaceLoss(LDRLoss())": lambda: [ReplaceLoss(LDRLoss())],
        "ReplaceLoss(FocalLoss())": lambda: [ReplaceLoss(FocalLoss())],
        "AddRegularizer(LogPartitionPenalty())": lambda: [AddRegularizer(LogPartitionPenalty())],
        "Distill(VanillaKD())": lambda: [Distill(VanillaKD(), teacher=Words(words))],
        "Distill(DualHead())": lambda: [Distill(DualHead(), teacher=Words(words))],
        "WrapHead(MultiSampleDropout(num_samples=4))": lambda: [WrapHead(MultiSampleDropout(num_samples=4))],
    }
    return [*made[name.removesuffix(WHOLE)](), *([AsAWhole()] if name.endswith(WHOLE) else [])]


class AsAWhole(L.Callback):
    """Switches chunks of rows off for a training."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.before, chunks.LARGE = chunks.LARGE, 10**18

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        chunks.LARGE = self.before


def run(bench: Bench) -> None:
    tokens, words = (8, 50) if bench.tiny else (1024, 32000)
    names = [PLAIN, *(name + how for name in TARGETS for how in (WHOLE, ""))]
    torch.manual_seed(0)
    batch = torch.randint(512, (tokens,), device=bench.device), torch.randint(words, (tokens,), device=bench.device)
    compare_fits(
        bench,
        f"{tokens} tokens, {words} words",
        partial(Words, words),
        batch,
        {name: partial(callbacks_of, name, words) for name in names},
        limit=PLAIN,
        steps=3 if bench.tiny else 8,
        skip=1 if bench.tiny else 2,
        repeats=1 if bench.tiny else 3,
        targets=[Target(name, PLAIN, most) for name, (most, _) in TARGETS.items() if most],
    )
    settings = {"tokens": tokens, "words": words, "device": bench.device}
    peaks = {name: bench.apart(f"{__name__}:peak", name=name, **settings) for name in names}
    beyond = {name: round((peaks[name] - peaks[PLAIN]) / (tokens * words * 4), 2) for name in names[1:]}
    bench.figures(
        "memory beyond the plain step",
        ["", "matrices of logits"],
        list(beyond.items()),
        targets=[(f"{name}: matrices", beyond[name], "<=", most) for name, (_, most) in TARGETS.items()],
    )


def peak(name: str, tokens: int, words: int, device: str) -> int:
    """The peak of memory of one variant."""
    quiet()
    batch = torch.randint(512, (tokens,)), torch.randint(words, (tokens,))
    memory = MemoryFromStep(device)
    trainer = trainer_for([memory, *callbacks_of(name, words)], 6, device)
    trainer.fit(Words(words), torch.utils.data.DataLoader(Same(batch, 6), batch_size=None))
    return memory.peak.grown
