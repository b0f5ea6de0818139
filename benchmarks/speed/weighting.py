"""Weighting the samples of a batch.

The limit is the criterion's own mean. The steps are those of Trainer.fit, whose loss is taken apart, weighted and put
together again.
"""

import timm
import torch
import torch.nn.functional as F

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._fits import compare_fits
from benchmarks.speed._nets import Classifier, images, seeded, small_cnn
from lightning_objectives.callbacks import ReweightSamples
from lightning_objectives.weighting import LossBasedReweighting, loss_based_weights

PLAIN, OURS = "no callback", "ReweightSamples(LossBasedReweighting())"
MEAN, WEIGHTED = "cross_entropy, mean", "loss_based_weights"


def run(bench: Bench) -> None:
    size, classes = (4, 3) if bench.tiny else (256, 1000)
    logits = torch.randn(size, classes, device=bench.device, requires_grad=True)
    target = torch.randint(classes, (size,), device=bench.device)

    def mean() -> None:
        F.cross_entropy(logits, target).backward()

    def unreduced() -> None:
        F.cross_entropy(logits, target, reduction="none").mean().backward()

    def weighted() -> None:
        losses = F.cross_entropy(logits, target, reduction="none")
        (losses * loss_based_weights(losses)).mean().backward()

    bench.measure(
        f"the loss alone, {size} x {classes}, forward and backward",
        {MEAN: mean, "cross_entropy, unreduced, then its mean": unreduced, WEIGHTED: weighted},
        limit=MEAN,
        repeats=101,
        warmup=5,
    )
    network = small_cnn if bench.tiny else lambda: timm.create_model("resnet18", num_classes=10)
    batch = images(4, 32, channels=1) if bench.tiny else images(64, 32)
    compare_fits(
        bench,
        "a step of resnet18 on 32x32, batch 64",
        lambda: Classifier(seeded(network)),
        batch,
        {PLAIN: list, OURS: lambda: [ReweightSamples(LossBasedReweighting())]},
        limit=PLAIN,
        steps=10,
        repeats=7,
        skip=1,
        targets=[Target(OURS, PLAIN, 1.01)],
    )
