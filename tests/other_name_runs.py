"""A project whose Trainer, module and callbacks are all those of ``pytorch_lightning``.

Run as a script, it is a project of people who have no ``lightning``.
"""

import sys

if __name__ == "__main__":
    sys.modules["lightning"] = None  # as where it is not installed: importing it raises

from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives import cli
from lightning_objectives.averaging import BEMA, EMA
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
from lightning_objectives.mixins import BEMAMixin, LossReweightingMixin, MultiSampleDropoutMixin, WSMMixin


class Net(pl.LightningModule):
    def __init__(self, width: int = 6):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2))
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(self.backbone(x))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Mixed(WSMMixin, BEMAMixin, LossReweightingMixin, MultiSampleDropoutMixin, Net):
    def configure_bema(self):
        return BEMA(lag=5)

    def configure_wsm_snapshots(self):
        return {"last": 2, "every_n_steps": 2}


QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
QUIET |= {"enable_model_summary": False, "log_every_n_steps": 1}


def batches(shuffle):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(24, 1, 8, 8, generator=generator), torch.arange(24) % 10)
    return DataLoader(data, batch_size=8, shuffle=shuffle)


def five(folder):
    torch.manual_seed(7)
    return [
        WSMCallback(last=2, every_n_steps=2),
        AverageWeights([BEMA(), EMA(decay=0.9)]),
        LossReweightingCallback(temperature=0.4),
        MultiSampleDropoutCallback(num_samples=3),
        DualHeadKDCallback(teacher=nn.Sequential(nn.Flatten(), nn.Linear(64, 10))),
        LogMetrics(weights=["raw", "average"]),
        RestoreRandomState(),
        ModelCheckpoint(folder / "ckpt", filename="{epoch}", save_top_k=-1),
    ]


def fit(folder, *, resume=None):
    """Two epochs with all five; from the file of the first one where ``resume`` is given."""
    callbacks = five(folder)
    pl.seed_everything(0, verbose=False)
    net = Net()
    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder, callbacks=callbacks, **QUIET)
    trainer.fit(net, batches(shuffle=True), batches(shuffle=False), ckpt_path=resume)
    assert {"val/raw/nll", "val/ema/top1", "train/dualhead", "train/max_weight"} <= set(trainer.callback_metrics)
    return net.state_dict(), torch.load(callbacks[0].path, weights_only=True)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_resume(folder):
    whole = fit(folder)
    resumed = fit(folder, resume=folder / "ckpt" / "epoch=0.ckpt")
    assert all(same(a, b) for a, b in zip(whole, resumed))
    assert not same(*whole)
    plain = Net.load_from_checkpoint(folder / "ckpt" / "epoch=1.ckpt")
    assert same(plain.state_dict(), whole[0])


def check_mixins(folder):
    trainer = pl.Trainer(max_epochs=1, default_root_dir=folder, enable_checkpointing=False, **QUIET)
    trainer.fit(Mixed(), datamodule=DigitsDataModule(batch_size=400))
    assert trainer.callback_metrics["train/max_weight"] > 1
    assert list(folder.rglob("*.ckpt"))


def config(folder, model):
    rule = {"class_path": "lightning_objectives.averaging.EMA", "init_args": {"decay": 0.9}}
    averages = {"class_path": "lightning_objectives.callbacks.AverageWeights", "init_args": {"rule": rule}}
    trainer = {**QUIET, "max_steps": 2, "enable_checkpointing": False, "callbacks": [averages]}
    path = folder / "project.yaml"
    data = {"class_path": "lightning_objectives.data.DigitsDataModule", "init_args": {"batch_size": 400}}
    path.write_text(
        yaml.safe_dump({"seed_everything": 0, "model": {"class_path": model}, "data": data, "trainer": trainer})
    )
    return str(path)


if __name__ == "__main__":
    (directory,) = map(Path, sys.argv[1:])
    check_resume(directory / "five")
    check_mixins(directory / "mixins")
    cli.main(["fit", "--config", config(directory, "__main__.Net")])
    (directory / "done").touch()
