"""A step of Trainer.fit with an average of the weights.

A small CNN (78 thousand weights) on 28x28 images, batch 32: where steps are short, what is added to each of them shows.
A repeat is the median step of one fit.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.callbacks import EMAWeightAveraging

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._fits import compare_fits
from benchmarks.speed._nets import Classifier, images, seeded, small_cnn
from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks import AverageWeights

PLAIN, OURS = "no callback", "AverageWeights(EMA())"


def run(bench: Bench) -> None:
    variants: dict[str, Callable[[], Sequence[Any]]] = {
        PLAIN: list,
        OURS: lambda: [AverageWeights(EMA())],
        "AverageWeights(BEMA())": lambda: [AverageWeights(BEMA())],
        "Lightning EMAWeightAveraging()": lambda: [EMAWeightAveraging()],
    }
    compare_fits(
        bench,
        "small CNN, batch 32",
        lambda: Classifier(seeded(small_cnn)),
        images(4 if bench.tiny else 32, 28, channels=1),
        variants,
        limit=PLAIN,
        steps=60,
        repeats=9,
        targets=[Target(OURS, PLAIN, 1.02)],
    )
