"""Every YAML of the examples runs through the command line, on small files in the formats of the real ones."""

import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_objectives import cli

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
BRIEF = ["--trainer.max_steps=2", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
BRIEF += ["--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false"]
BRIEF += ["--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
BRIEF += ["--trainer.devices=1", "--trainer.logger=false"]


@pytest.fixture
def run(monkeypatch):
    """Runs `fit` on a folder's baseline with another file behind it, and gives the trainer."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    trainers = []
    teardown = Trainer._teardown
    monkeypatch.setattr(Trainer, "_teardown", lambda self: (trainers.append(self), teardown(self))[1])

    def run(path, *overrides):
        files = dict.fromkeys([path.parent / "baseline.yaml", path])  # once, where it is the baseline itself
        cli.main(["fit", *(f"--config={file}" for file in files), *BRIEF, *overrides])
        return trainers[-1]

    return run


def ids(folder):
    return pytest.mark.parametrize("path", sorted((EXAMPLES / folder).glob("*.yaml")), ids=lambda path: path.stem)


def check(trainer, path):
    """It trained, it measured, and what the file adds is there beside the baseline's callbacks."""
    assert trainer.global_step == 2
    assert trainer.callback_metrics["val/nll"].isfinite()
    names = {type(callback).__name__ for callback in trainer.callbacks}
    assert "LogMetrics" in names, "the baseline's callbacks are kept"
    added = {line.rpartition(".")[2] for line in path.read_text().split("\n") if ".callbacks." in line}
    assert added <= names
    assert all(p.isfinite().all() for p in trainer.lightning_module.parameters() if isinstance(p, torch.Tensor))


@ids("digits")
def test_digits(run, path):
    check(run(path), path)
