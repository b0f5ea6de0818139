"""Trainings whose checkpoints lie in ``tests/data``: ``python tests/callbacks/earlier_files.py OUT`` writes them anew.

Those in the repository were written by version 0.1.0, before its files were moved. Never write them anew to make a test
pass: they stand for the files that users have.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives import mixins
from lightning_objectives.averaging import BEMA, EMA, SWA
from lightning_objectives.batches import Mixup
from lightning_objectives.calibration import TemperatureScaling
from lightning_objectives.callbacks import (
    AddRegularizer,
    AverageWeights,
    BEMACallback,
    Calibrate,
    DualHeadKDCallback,
    EMACallback,
    LossReweightingCallback,
    MergeCheckpoints,
    MultiSampleDropoutCallback,
    RestoreRandomState,
    TransformBatch,
    TransformGradients,
    WSMCallback,
)
from lightning_objectives.data import with_index
from lightning_objectives.gradients import OrthogonalGradient
from lightning_objectives.merging import WSM
from lightning_objectives.regularizers import SpectralDecoupling

FOLDER = "FOLDER"
"""Stands in the files for the folder that they were written to."""
BATCHES, EPOCHS, MIDDLE = 4, 3, 6
"""Batches in an epoch, epochs, and the optimizer step of the checkpoint in the middle: within the second epoch."""


class Net(L.LightningModule):
    """BatchNorm, a frozen layer and an integer buffer, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(4, 6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh()]
        self.backbone = nn.Sequential(*layers)
        self.fc = nn.Linear(6, 3)
        self.register_buffer("table", torch.arange(5))
        self.double()
        self.backbone[0].requires_grad_(False)

    def forward(self, x):
        return self.fc(self.backbone(x))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Mixed(mixins.MultiSampleDropoutMixin, mixins.LossReweightingMixin, mixins.BEMAMixin, mixins.WSMMixin, Net):
    """The same with what its owner's mixins bring."""

    folder = ""

    def configure_bema(self):
        return BEMA(lag=2)

    def configure_wsm_snapshots(self):
        return {"last": 3, "every_n_steps": 2, "directory": f"{self.folder}/merge"}


class Save(L.Callback):
    """Writes ``middle.ckpt`` at the end of the batch with this step; it comes last."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == MIDDLE:
            trainer.save_checkpoint(self.folder / "middle.ckpt")


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(3, (32,), generator=generator))


def teacher():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def five(folder):
    """The five systems, and a second average."""
    return [
        MultiSampleDropoutCallback(num_samples=2, p=0.5),
        LossReweightingCallback(temperature=0.5),
        DualHeadKDCallback(teacher=teacher(), cache=f"{folder}/logits"),
        BEMACallback(lag=2, buffers="average"),
        AverageWeights([EMA(decay=0.5), SWA()], primary=False, start_step=3, every_n_steps=2),
        WSMCallback(last=3, every_n_steps=2, directory=f"{folder}/merge"),
        RestoreRandomState(),
    ]


def others(folder):
    """A running sum in the place of a window, and what else has a state."""
    return [
        AddRegularizer(SpectralDecoupling(), strength=0.1),
        TransformBatch(Mixup()),
        TransformGradients(OrthogonalGradient()),
        EMACallback(decay=0.9),
        MergeCheckpoints(WSM(shape="linear"), last=3, every_n_steps=2, keep="sum", directory=f"{folder}/merge"),
        Calibrate(TemperatureScaling()),
    ]


def plain(folder):
    return []


def mixed(folder):
    """Nothing: the module brings it."""
    return []


RUNS = {"plain": (Net, plain), "five": (Net, five), "others": (Net, others), "mixed": (Mixed, mixed)}


def fit(name, folder, ckpt_path=None):
    """The training of that name; with a checkpoint it goes on from there. Returns the trainer and its module."""
    module, callbacks = RUNS[name]
    L.seed_everything(0, verbose=False)
    net = module()
    net.folder = folder
    saver = [Save(folder)] if ckpt_path is None else []
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks(folder), *saver],
    )
    asks = name == "five"  # its cache of logits wants to know which sample is which
    train = DataLoader(with_index(data()) if asks else data(), batch_size=8)
    trainer.fit(net, train, DataLoader(data(), batch_size=8), ckpt_path=ckpt_path)
    return trainer, net


def outcome(trainer, net, folder):
    """What a training leaves: the module's state, each average, the merge, and what the callbacks would save."""
    trainer.save_checkpoint(folder / "end.ckpt")
    left = {"end": torch.load(folder / "end.ckpt", weights_only=True)}
    if (folder / "merge" / "merged.ckpt").exists():
        left["merged"] = torch.load(folder / "merge" / "merged.ckpt", weights_only=True)["state_dict"]
    return left


def moved(value, old, new):
    """A checkpoint's contents with one folder in the place of another."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return type(value)((key, moved(item, old, new)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, old, new) for item in value)
    return value


def copied(source, target, old, new):
    """Copy a folder of a training's files, with one folder in the place of another inside of its checkpoints."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    for file in target.rglob("*.ckpt"):
        torch.save(moved(torch.load(file, weights_only=True), old, new), file)


def write(out):
    """The checkpoints of all trainings, and what each leaves when it goes on from its middle."""
    for name in RUNS:
        with tempfile.TemporaryDirectory() as scratch:
            first, again = Path(scratch) / "first", Path(scratch) / "again"
            first.mkdir()
            trainer, net = fit(name, first)
            outcome(trainer, net, first)
            copied(first, again, str(first), str(again))
            left = outcome(*fit(name, again, ckpt_path=again / "middle.ckpt"), again)
            shutil.rmtree(out / name, ignore_errors=True)
            copied(first, out / name, str(first), FOLDER)
            torch.save(moved(left, str(again), FOLDER), out / name / "resumed.pt")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
