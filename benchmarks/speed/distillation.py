"""A step under a teacher: resnet18 under resnet50, against resnet18 alone in the same layout.

A repeat is one step of a Trainer that goes on; the variants take turns. The student's layout is the user's own, so each
layout is compared with itself. The teacher's layout is its own: in a contiguous student's training it is given in
channels_last too.
"""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._fits import compare_fits
from benchmarks.speed._nets import Classifier, images, seeded, small_cnn
from lightning_objectives.callbacks import Distill
from lightning_objectives.data.with_index import Indexed
from lightning_objectives.distillation import VanillaKD

ALONE, LIVE, CACHED = "student alone", "Distill", "Distill, cached logits"
OTHER = "Distill, teacher in channels_last"
MISTAKE, PLAIN = "by hand, teacher in train mode with gradients", "by hand, teacher in inference mode"


class ByHand(Classifier):
    """What users write in their step, rightly or not."""

    def __init__(self, network: nn.Module, teacher: nn.Module, *, mistaken: bool) -> None:
        super().__init__(network)
        object.__setattr__(self, "teacher", teacher.train() if mistaken else teacher.eval())
        self.mistaken = mistaken

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, target = batch
        logits = self.network(inputs)
        if self.mistaken:
            told = self.teacher(inputs)
        else:
            with torch.inference_mode():
                told = self.teacher(inputs)
            told = told.clone()
        distance = F.kl_div((logits / 4).log_softmax(1), (told / 4).log_softmax(1), log_target=True)
        return F.cross_entropy(logits, target) + distance


def run(bench: Bench) -> None:
    classes, size, n = (3, 8, 2) if bench.tiny else (100, 112, 16)

    def student() -> nn.Module:
        return seeded(
            lambda: small_cnn(3, classes) if bench.tiny else timm.create_model("resnet18", num_classes=classes)
        )

    def teacher() -> nn.Module:
        return seeded(
            lambda: small_cnn(3, classes) if bench.tiny else timm.create_model("resnet50", num_classes=classes)
        )

    inputs, target = images(n, size, classes=classes)
    for layout, form in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        with tempfile.TemporaryDirectory() as folder:
            batch = (inputs.to(memory_format=form), target)
            cache = f"{folder}/logits"

            def live(form: torch.memory_format = form) -> list[Any]:
                return [Distill(VanillaKD(), teacher=teacher().to(memory_format=form))]

            def cached(form: torch.memory_format = form, cache: str = cache) -> list[Any]:
                return [Distill(VanillaKD(), teacher=teacher().to(memory_format=form), cache=cache)]

            variants: dict[str, Callable[[], Sequence[Any]]] = {ALONE: list, LIVE: live, CACHED: cached}
            wrap: dict[str, Callable[[], Any]] = {}
            if layout == "contiguous":
                variants |= {OTHER: lambda: live(torch.channels_last), PLAIN: list, MISTAKE: list}
                wrap = {
                    PLAIN: lambda: ByHand(student(), teacher().to(bench.device), mistaken=False),
                    MISTAKE: lambda: ByHand(student(), teacher().to(bench.device), mistaken=True),
                }
            compare_fits(
                bench,
                f"resnet18 under resnet50, {n} x 3 x {size} x {size}, {layout}",
                lambda form=form: Classifier(student().to(memory_format=form)),
                Indexed(batch, torch.arange(n)),
                variants,
                limit=ALONE,
                steps=5,
                repeats=3,
                skip=1,
                wrap=wrap,
                targets=[Target(LIVE, ALONE, 1.67), Target(CACHED, ALONE, 1.02)],
                unwrap=(ALONE, *wrap),
            )
