"""A test batch that the network adapts to: a plain test, TENT by a callback and by hand, and BatchNorm's statistics.

By hand is a `test_step` that lets BatchNorm use the batch's statistics, takes the entropy's gradient and steps, with
Lightning's inference mode off. All variants run `trainer.test` on one batch again and again.
"""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._fits import Clock, quiet, trainer_for
from benchmarks.speed._nets import Classifier, Same, images, seeded, small_cnn
from benchmarks.timing import Times
from lightning_objectives.adaptation import LAME, TENT, BatchNormAdaptation
from lightning_objectives.callbacks import AdaptAtTest

PLAIN, HAND, OURS = "a plain test", "TENT by hand", "AdaptAtTest(TENT())"
STATISTICS, OUTPUTS = "AdaptAtTest(BatchNormAdaptation())", "AdaptAtTest(LAME())"


class Tested(Classifier):
    """What a user's test step looks like."""

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        return F.cross_entropy(self.network(inputs), target)


class ByHand(Classifier):
    """The authors' loop in a test step, without dropout."""

    def on_test_start(self) -> None:
        norms = [part for part in self.network.modules() if isinstance(part, nn.BatchNorm2d)]
        self.network.requires_grad_(False)
        for norm in norms:
            norm.requires_grad_(True)
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        self.optimizer = torch.optim.Adam([p for norm in norms for p in norm.parameters()], lr=1e-3)

    @torch.enable_grad()
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        logits = self.network(inputs)
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        entropy.backward()  # type: ignore[no-untyped-call]  # torch
        self.optimizer.step()
        self.optimizer.zero_grad()
        return F.cross_entropy(logits.detach(), target)


class TestClock(Clock):
    """The time from the begin of each test step to that of the next."""

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.on_train_batch_start(trainer, pl_module, batch, batch_idx)


def run(bench: Bench) -> None:
    made: dict[str, Callable[[], Sequence[Any]]] = {
        PLAIN: list,
        HAND: list,
        OURS: lambda: [AdaptAtTest(TENT())],
        STATISTICS: lambda: [AdaptAtTest(BatchNormAdaptation())],
        OUTPUTS: lambda: [AdaptAtTest(LAME())],
    }
    networks: dict[str, tuple[Callable[[], nn.Module], Any, int]] = {
        "resnet of 8 layers on 1x28x28, batch 64": (small_cnn, images(64, 28, channels=1), 60)
    }
    if not bench.tiny:
        resnet = lambda: timm.create_model("resnet18", num_classes=10)  # noqa: E731
        networks["resnet18 on 3x32x32, batch 64"] = (resnet, images(64, 32), 8)
    quiet()
    for name, (make, batch, steps) in networks.items():
        steps, repeats, skip = (3, 1, 1) if bench.tiny else (steps, 7, 2)
        times = {key: Times() for key in made}
        order = list(made)
        for repeat in range(repeats + (not bench.tiny)):
            for key in order:
                clock = TestClock(bench.device, skip)
                settings = {"inference_mode": False} if key == HAND else {}
                trainer = trainer_for([clock, *made[key]()], steps + 1, bench.device, **settings)
                module: L.LightningModule = (ByHand if key == HAND else Tested)(seeded(make))
                data = torch.utils.data.DataLoader(Same(batch, steps + 1), batch_size=None)
                gc.collect()
                gc.disable()
                try:
                    trainer.test(module, data, verbose=False)
                finally:
                    gc.enable()
                wall, cpu = clock.steps()
                if repeat or bench.tiny:
                    times[key].wall.append(wall)
                    times[key].cpu.append(cpu)
            order = [*order[1:], order[0]]
        bench.keep(name, times, limit=PLAIN, targets=[Target(OURS, HAND, 1.1), Target(STATISTICS, PLAIN, 1.5)])
