"""Every YAML of the examples runs through the command line, on small files in the formats of the real ones."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from data_files import write_cifar, write_fashion_mnist, write_image_folders
from lightning.pytorch import Trainer

from lightning_objectives import cli

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore:`Digits.configure_optimizers` will be overridden"),
    # Two steps of a recipe of thousands: averages do not begin, and schedules are in their warmup.
    pytest.mark.filterwarnings("ignore:AverageWeights of .* never began", "ignore:The learning rate varied"),
]
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
        teacher = path.parent / "teacher.yaml"
        if path.stem in ("dual_head_kd", "all") and teacher.exists():
            run(teacher, *overrides)
        if path.stem in ("wsm", "all"):
            overrides += ("--trainer.callbacks.every_n_steps=1",)  # of the last callback: two steps, two snapshots
        cli.main(["fit", *(f"--config={file}" for file in files), *BRIEF, *overrides])
        return trainers[-1]

    return run


def of(folder):
    return sorted((EXAMPLES / folder).glob("*.yaml"))


def ids(folder):
    return pytest.mark.parametrize("path", of(folder), ids=lambda path: path.stem)


def check(trainer, path):
    """It trained, it measured, and what the file adds is there beside the baseline's callbacks."""
    assert trainer.global_step == 2
    assert trainer.callback_metrics["val/nll"].isfinite()
    names = {type(callback).__name__ for callback in trainer.callbacks}
    assert "LogMetrics" in names, "the baseline's callbacks are kept"
    added = {line.rpartition(".")[2] for line in path.read_text().split("\n") if ".callbacks." in line}
    assert added <= names
    assert all(p.isfinite().all() for p in trainer.lightning_module.parameters() if isinstance(p, torch.Tensor))
    if path.stem in ("dual_head_kd", "all"):
        assert trainer.callback_metrics["train/dualhead"] > 0
    if path.stem in ("wsm", "all"):
        folder = Path("runs") / path.parent.name / "wsm"
        assert len(list(folder.glob("*.safetensors"))) == 2
        merged = torch.load(folder / "merged.ckpt", weights_only=True)["state_dict"]
        assert merged.keys() == trainer.lightning_module.state_dict().keys()
        schedule = trainer.lr_scheduler_configs[0].scheduler
        rates = [schedule.step() or schedule.get_last_lr()[0] for _ in range(trainer.max_epochs)]
        assert rates == sorted(rates), "a merge stands for the decay, so that the learning rate does not fall itself"


@ids("digits")
def test_digits(run, path):
    check(run(path), path)


@pytest.mark.slow
@ids("fashion_mnist")
def test_fashion_mnist(run, path, tmp_path):
    write_fashion_mnist(tmp_path)
    check(run(path, f"--data.init_args.data_dir={tmp_path}", "--data.init_args.batch_size=4"), path)


@pytest.mark.slow
@pytest.mark.parametrize("path", [*of("cifar10"), *of("cifar100")], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_cifar(run, path, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)  # checksums of the real files
    write_cifar(tmp_path, 100 if path.parent.name == "cifar100" else 10)
    small = ["--data.init_args.batch_size=2", "--data.init_args.num_workers=0", "--data.init_args.val_fraction=0.5"]
    check(run(path, f"--data.init_args.data_dir={tmp_path}", *small), path)
    if path.stem == "teacher":
        saved = torch.load(f"runs/{path.parent.name}/teacher.ckpt", weights_only=True)
        assert saved["hyper_parameters"]["model"] == "resnet50"
        assert saved["state_dict"]["model.conv1.weight"].shape == (64, 3, 3, 3)


@pytest.mark.slow
@ids("imagenet")
def test_imagenet(run, path, tmp_path, monkeypatch):
    create = timm.create_model
    untrained = {"pretrained": False}  # in the place of a download
    monkeypatch.setattr(timm, "create_model", lambda name, **settings: create(name, **settings | untrained))
    write_image_folders(tmp_path, classes=2)
    small = ["--data.init_args.batch_size=2", "--data.init_args.num_workers=0", "--data.init_args.image_size=32"]
    check(run(path, f"--data.init_args.data_dir={tmp_path}", *small, "--trainer.precision=32-true"), path)
