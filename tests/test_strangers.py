"""Modules of other people, unedited, with everything plugged in."""

import copy
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import timm
import torch
from helpers import MODEL, digits, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos import LightningTransformer
from processes import killed
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives._trainer.carried import callbacks_of
from lightning_objectives.averaging import BEMA, EMA, SWA
from lightning_objectives.callbacks import (
    AverageWeights,
    DualHeadKDCallback,
    LogMetrics,
    LossReweightingCallback,
    MultiSampleDropoutCallback,
    RestoreRandomState,
    WSMCallback,
)
from lightning_objectives.data import DigitsDataModule


def everything(*, head=True, unit="sample"):
    return [
        *([MultiSampleDropoutCallback(num_samples=4)] if head else []),
        LossReweightingCallback(temperature=0.4, unit=unit),
        AverageWeights([BEMA(), EMA(decay=0.9), SWA()]),
        RestoreRandomState(),
    ]


def five(teacher):
    """The five systems together, in an order that is not that of the step."""
    return [
        WSMCallback(last=2, every_n_steps=2),
        AverageWeights([BEMA(), EMA(decay=0.9)]),
        LossReweightingCallback(temperature=0.4),
        MultiSampleDropoutCallback(num_samples=4),
        DualHeadKDCallback(teacher=teacher),
        LogMetrics(weights=["raw", "average"]),
    ]


def check_five(runner, net, names):
    """Each of the five was at work, and the module is as it was found, but for the values of its weights."""
    logged = runner.callback_metrics
    assert {"val/raw/nll", "val/ema/top1", "val/nll"} <= set(logged)
    assert logged["train/dualhead"] > 0
    assert logged["train/max_weight"] > 1
    assert set(net.state_dict()) == names
    (merge,) = callbacks_of(runner, WSMCallback)
    files = [merge.path.with_name(f"step={runner.global_step - back}.safetensors") for back in (2, 0)]
    assert set(merge.path.parent.glob("*.safetensors")) == set(files)
    merged = torch.load(merge.path, weights_only=True)
    assert merged["state_dict"].keys() == names
    snapshots = [load_file(file) for file in files]
    for name, parameter in net.named_parameters():  # 1-sqrt: the older has the share sqrt(1/2), the newer the rest
        expected = 0.5**0.5 * snapshots[0][name] + (1 - 0.5**0.5) * snapshots[1][name]
        torch.testing.assert_close(merged["state_dict"][name], expected)
        assert parameter.isfinite().all()
    return merged["state_dict"]


@pytest.mark.filterwarnings("ignore:The learning rate varied")  # one cycle of it, in two snapshots
def test_the_five_together_on_the_example(tmp_path):
    net, teacher = digits()(width=2), digits()(width=4)
    names, taught = set(net.state_dict()), copy.deepcopy(teacher.state_dict())
    runner = trainer(*five(teacher), default_root_dir=tmp_path)
    runner.fit(net, datamodule=DigitsDataModule(batch_size=400))
    merged = check_five(runner, net, names)
    assert not net.classifier._forward_hooks
    assert "forward" not in vars(net.classifier)
    assert same(taught, teacher.state_dict()), "the teacher is not trained, its statistics neither"
    plain = digits()(width=2)
    plain.load_state_dict(merged, strict=True)


@pytest.mark.filterwarnings("ignore:You called `self.log")  # the routine asks for a logger
def test_the_five_together_on_a_classification_routine_from_pypi(tmp_path):
    from torch_uncertainty.routines import ClassificationRoutine

    images, target = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    batches = DataLoader(TensorDataset(images, target), batch_size=8)
    network = timm.create_model("test_resnet", num_classes=4)
    teacher = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 4))
    recipe = torch.optim.SGD(network.parameters(), lr=0.01)
    routine = ClassificationRoutine(network, num_classes=4, loss=nn.CrossEntropyLoss(), optim_recipe=recipe)
    names = set(routine.state_dict())
    runner = trainer(*five(teacher), default_root_dir=tmp_path)
    runner.fit(routine, batches, batches)
    check_five(runner, routine, names)
    assert "val/cls/Acc" in runner.callback_metrics


def test_the_example_is_not_touched():
    before = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    net = digits()(width=2)
    names, values = set(net.state_dict()), set(vars(net))
    runner = trainer(*everything(), LogMetrics(weights=["raw", "average"]))
    runner.fit(net, datamodule=DigitsDataModule(batch_size=400))
    expected = {"train/max_weight", "val/ece", "val/top5", "val/raw/nll", "val/bema/top1", "val/swa/brier", "val_acc"}
    assert expected <= set(runner.callback_metrics)
    assert set(net.state_dict()) == names
    assert set(vars(net)) - values <= {"_trainer", "_hparams_initial"}
    assert not net.classifier._forward_hooks
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest() == before
    assert "lightning_objectives" not in MODEL.read_text()


@pytest.mark.filterwarnings("ignore:You called `self.log")
def test_a_classification_routine_from_pypi():
    from torch_uncertainty.routines import ClassificationRoutine

    images, target = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    batches = DataLoader(TensorDataset(images, target), batch_size=8)
    network = timm.create_model("test_resnet", num_classes=4)
    recipe = torch.optim.SGD(network.parameters(), lr=0.01)
    routine = ClassificationRoutine(network, num_classes=4, loss=nn.CrossEntropyLoss(), optim_recipe=recipe)
    names = set(routine.state_dict())
    runner = trainer(*everything(), LogMetrics(weights=["average"]))
    runner.fit(routine, batches, batches)
    assert {"train/max_weight", "val/ece", "val/bema/top1", "val/cls/Acc"} <= set(runner.callback_metrics)
    assert set(routine.state_dict()) == names


def tokens():
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(11, (8, 2, 6), generator=generator)
    return DataLoader(TensorDataset(text[:, 0], text[:, 1]), batch_size=4)


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(LightningTransformer, "prepare_data", lambda self: None)


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize("head", [False, True])
def test_lightnings_demo_transformer_with_sequences_as_samples(head):
    L.seed_everything(0, verbose=False)
    runner = trainer(*everything(head=head), max_epochs=1)
    net = LightningTransformer(vocab_size=11)
    runner.fit(net, tokens())
    assert runner.callback_metrics["train/effective_sample_size"] <= 4
    runner = trainer(*everything(head=head, unit="element"), max_epochs=1)
    runner.fit(net, tokens())
    assert 4 < runner.callback_metrics["train/effective_sample_size"] <= 24


@pytest.mark.usefixtures("no_download")
def test_a_shape_that_forbids_the_head_is_refused():
    class Tied(LightningTransformer):
        def __init__(self):
            super().__init__(vocab_size=11)
            del self.model.decoder  # the output is the embedding itself: there is no head to call
            self.model.decoder = lambda x: x @ self.model.embedding.weight.T

    with pytest.raises(ValueError, match="'dropout', which cannot be repeated"):
        trainer(MultiSampleDropoutCallback(), max_epochs=1).fit(Tied(), tokens())
    trainer(*everything(head=False), max_epochs=1).fit(Tied(), tokens())


# -- a kill in the middle of an epoch, and a process without this package ---


class Wait(L.Callback):
    """Waits to be killed."""

    def __init__(self, directory):
        self.directory = directory

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 1:
            (self.directory / "ready").touch()
            time.sleep(60)


def run(directory, *callbacks, ckpt_path=None):
    """Shuffled data, dropout, BatchNorm and everything plugged in."""
    L.seed_everything(0, verbose=False)
    net, plugged = digits()(width=2, dropout=0.5), everything()
    saver = ModelCheckpoint(directory, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True)
    runner = trainer(*plugged, LogMetrics(), saver, *callbacks, max_epochs=4, enable_checkpointing=True)
    runner.fit(net, datamodule=DigitsDataModule(batch_size=300), ckpt_path=ckpt_path)
    averages = next(c for c in plugged if isinstance(c, AverageWeights))
    return {"net": dict(net.state_dict()), "averages": averages.state_dict()}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # each run has a folder of its own
def test_killed_in_an_epoch_and_resumed_it_ends_to_the_bit(tmp_path):
    last = killed(__file__, tmp_path, directory=tmp_path)
    assert last.name == "epoch=1.ckpt"

    resumed = run(tmp_path / "resumed", ckpt_path=tmp_path / "epoch=1.ckpt")
    whole = run(tmp_path / "whole")
    assert same(whole, resumed)


@pytest.mark.parametrize("cut", ["half", "empty"])
def test_a_truncated_checkpoint_is_an_error_that_leaves_the_module_alone(cut, tmp_path):
    net = digits()(width=2)
    runner = trainer(*everything(), max_epochs=1)
    runner.fit(net, datamodule=DigitsDataModule(batch_size=700))
    runner.save_checkpoint(tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2] if cut == "half" else b"")
    other = digits()(width=2)
    before, weights = set(vars(other)), {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"cut.ckpt is cut off, or is no checkpoint: its \d+ bytes"):
        trainer(*everything()).fit(other, datamodule=DigitsDataModule(), ckpt_path=tmp_path / "cut.ckpt")
    assert set(vars(other)) - before <= {"_trainer", "_hparams_initial"}
    assert same(weights, dict(other.state_dict()))
    assert "forward" not in vars(other.classifier)


@pytest.mark.processes
def test_the_checkpoint_opens_strictly_where_the_package_is_not(tmp_path):
    run(tmp_path)
    code = f"""
import sys
sys.modules["lightning_objectives"] = None  # importing it raises
sys.path.insert(0, {str(MODEL.parent)!r})
from model import Digits
net = Digits.load_from_checkpoint({str(tmp_path / "epoch=3.ckpt")!r}, strict=True, weights_only=True)
print(sum(p.double().sum().item() for p in net.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=True)
    file = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)
    weights = [v for k, v in file["state_dict"].items() if v.is_floating_point() and "running" not in k]
    averaged = sum(value.double().sum().item() for value in weights)
    assert float(done.stdout) == pytest.approx(averaged, abs=1e-9)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Wait(Path(sys.argv[1])))
