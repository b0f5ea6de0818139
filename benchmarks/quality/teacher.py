"""The large teacher: the one of ``examples/fashion_mnist``, kept outside of the repository, its accuracy recorded."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.quality.data import MEAN, STD, Fashion, eval_loader
from examples.image_classifier import ImageClassifier
from lightning_objectives import cli

FILE = Path("runs/fashion_mnist/teacher.ckpt")
RECORD = Path(__file__).parent / "teacher.json"
TRANSLATION: dict[str, Any] = {"data_normalization": ((MEAN,), (STD,)), "teacher_normalization": ((0.0,), (1.0,))}
"""It was trained on images in [0, 1], the tasks' are normalized."""


def answers() -> str:
    """The directory in which its answers are kept from run to run."""
    return os.environ.get("QUALITY_ANSWERS", str(FILE.with_name("answers")))


def network() -> nn.Module:
    """The trained teacher."""
    return ImageClassifier.load_from_checkpoint(FILE, map_location="cpu").model.eval()


def train() -> None:
    """Train it by its recipe unless it is there, and say how good it is."""
    if not FILE.exists():
        recipe = Path("examples/fashion_mnist")
        cli.main(["fit", "-c", str(recipe / "baseline.yaml"), "-c", str(recipe / "teacher.yaml")])
    if not RECORD.exists():
        splits, made = Fashion().splits(0), network()
        right = {name: accuracy(made, data) for name, data in (("val", splits.val), ("test", splits.test))}
        record = {"parameters": sum(p.numel() for p in made.parameters()), **right}
        RECORD.write_text(json.dumps(record) + "\n")


@torch.no_grad()
def accuracy(network: nn.Module, data: torch.utils.data.Dataset) -> float:
    """On normalized images."""
    right = [(network(images * STD + MEAN).argmax(1) == target).float() for images, target in eval_loader(data)]
    return round(torch.cat(right).mean().item(), 4)
