"""The module of the examples: its schedules by hand, and its nets for small images."""

import importlib.util
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

FILE = Path(__file__).parents[2] / "examples" / "image_classifier.py"
SPEC = importlib.util.spec_from_file_location("image_classifier", FILE)
module = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(module)
ImageClassifier = module.ImageClassifier


class Rates(L.Callback):
    def __init__(self):
        self.rates = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates(**settings):
    net = ImageClassifier("test_resnet", 2, lr=0.5, **settings)
    seen = Rates()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=6, accelerator="cpu", callbacks=[seen], **quiet)
    trainer.fit(net, DataLoader(TensorDataset(torch.rand(2, 3, 32, 32), torch.tensor([0, 1])), batch_size=2))
    return seen.rates


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, [0.5] * 6),
        ({"schedule": "constant", "warmup_epochs": 2}, [0.005, 0.2525, 0.5, 0.5, 0.5, 0.5]),
        ({"schedule": "multistep", "milestones": (2, 4)}, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005]),
        ({"schedule": "multistep", "milestones": (4,), "warmup_epochs": 1}, [0.005, 0.5, 0.5, 0.5, 0.05, 0.05]),
        ({"schedule": "cosine"}, [0.25 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]),
        (
            {"schedule": "cosine", "warmup_epochs": 2, "optimizer": "adamw"},
            [0.005, 0.2525, *(0.25 * (1 + math.cos(math.pi * k / 4)) for k in range(4))],
        ),
    ],
)
def test_schedules(settings, expected):
    assert rates(**settings) == pytest.approx(expected)


def test_small_images():
    net = ImageClassifier("resnet18", 10, in_chans=1, small_images=True)
    assert net.model.forward_features(torch.rand(1, 1, 32, 32)).shape == (1, 512, 4, 4)
    with pytest.raises(ValueError, match="'test_vit' has no conv1"):
        ImageClassifier("test_vit", 10, small_images=True)


def test_it_knows_of_no_plug_in():
    assert "lightning_objectives" not in FILE.read_text()
