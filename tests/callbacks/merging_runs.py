"""Trainings in processes of their own: ``python merging_runs.py RUN DIRECTORY``."""

import os
import sys
import time
from pathlib import Path

import lightning as L
import torch
from averaging_nets import NormNet, fit, loader
from averaging_runs import Sharded
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from lightning_objectives.callbacks import LogMetrics, MergeCheckpoints
from lightning_objectives.merging import WSM

RANK = int(os.environ.get("LOCAL_RANK", 0))


class Stops(L.Callback):
    """Waits in the middle of an epoch to be killed, when newer snapshots are there than the checkpoint knows of."""

    def __init__(self, directory):
        self.directory = directory

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 2:
            (self.directory / "ready").touch()
            time.sleep(60)


def single(directory, ckpt_path=None, *, stop=False):
    """Snapshots after each step; returns the merge."""
    merge = MergeCheckpoints(WSM(), last=6, every_n_steps=1, directory=directory / "merge")
    saver = ModelCheckpoint(directory, save_top_k=-1, filename="{epoch}")
    fit(merge, saver, *([Stops(directory)] if stop else []), net=NormNet(), epochs=4, ckpt_path=ckpt_path)
    return dict(torch.load(merge.path, weights_only=True)["state_dict"])


class Classes(NormNet):
    """Compares classes, so that there is something to log."""

    def __init__(self):
        super().__init__()
        self.layers[3] = nn.Linear(3, 2)
        self.double()

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), (batch[1] > 0).long().squeeze(1))

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)


def ddp(directory, **settings):
    """Evaluated and re-estimated; each process writes what it knows at the end."""
    merge = MergeCheckpoints(
        WSM(), last=3, every_n_steps=1, evaluate=True, buffers="recalibrate", directory=directory / "merge"
    )
    total = MergeCheckpoints(
        WSM(), last=3, every_n_steps=1, buffers="recalibrate", keep="sum", directory=directory / "sum"
    )
    mine = loader(dtype=torch.float64, rank=RANK)
    settings = settings or {"devices": 2, "strategy": "ddp", "data": mine, "use_distributed_sampler": False}
    torch.manual_seed(7)
    net = Classes()
    net.val_dataloader = lambda: loader(dtype=torch.float64)
    _, runner = fit(LogMetrics(weights=["average"]), merge, total, net=net, **settings)
    logged = {name: float(value) for name, value in runner.callback_metrics.items()}
    result = {"logged": logged, "weights": merge.weights("wsm"), "path": str(merge.path), "sum": str(total.path)}
    torch.save(result, directory / f"rank{runner.global_rank}.pt")
    return result


def sharded(directory):
    """With FSDP2: the merge of shards is that of the whole weights, and so is their sum."""
    total = MergeCheckpoints(WSM(), last=3, every_n_steps=1, keep="sum", directory=directory / "sum")
    merge = MergeCheckpoints(WSM(), last=3, every_n_steps=1, directory=directory / "merge")
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    mine = {"data": loader(rank=RANK), "use_distributed_sampler": False}
    net, runner = fit(merge, total, net=Sharded(), devices=2, strategy=strategy, **mine)
    state = {name: value.full_tensor() for name, value in net.state_dict().items()}
    kept = len(total.state_dict()["window"]["means"])
    torch.save(
        {"net": state, "path": str(merge.path), "sum": str(total.path), "kept": kept},
        directory / f"rank{runner.global_rank}.pt",
    )


if __name__ == "__main__":
    run, directory = sys.argv[1:]
    if run == "killed":
        single(Path(directory), stop=True)
    else:
        {"ddp": ddp, "sharded": sharded}[run](Path(directory))
