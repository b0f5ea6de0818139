"""Trainings in processes of their own: ``python averaging_runs.py RUN DIRECTORY [CHECKPOINT]``."""

import os
import sys
import time
from pathlib import Path

import lightning as L
import torch
from averaging_nets import Net, NormNet, fit, loader
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.callbacks.restore_random_state import RestoreRandomState

RANK = int(os.environ.get("LOCAL_RANK", 0))


class Stops(L.Callback):
    """Waits in the middle of an epoch to be killed."""

    def __init__(self, directory):
        self.directory = directory

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 1:
            (self.directory / "ready").touch()
            time.sleep(60)


def single(directory, ckpt_path=None, *, stop=False, seed=0):
    """With shuffling, dropout, and averages of two kinds; returns all that there is at the end."""
    net, averages = Net(lr=0.01), AverageWeights([EMA(decay=0.9), BEMA()])
    net.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    torch.manual_seed(seed)
    saver = ModelCheckpoint(directory, save_top_k=-1, filename="{epoch}")
    callbacks = [RestoreRandomState(), averages, saver, *([Stops(directory)] if stop else [])]
    fit(*callbacks, net=net, val=True, data=loader(shuffle=True), epochs=4, ckpt_path=ckpt_path)
    return {"net": dict(net.state_dict()), "averages": averages.state_dict()}


def ddp(directory, ckpt_path=None, **settings):
    """Each process writes what it holds at the end."""
    results = {}
    for name, buffers in (("plain", "copy"), ("norm", "recalibrate")):
        averages = AverageWeights([BEMA(), EMA(decay=0.9)], buffers=buffers)
        net = {"plain": Net, "norm": NormNet}[name]().double()
        mine = loader(dtype=torch.float64, rank=RANK)
        settings = settings or {"devices": 2, "strategy": "ddp", "data": mine, "use_distributed_sampler": False}
        saver = ModelCheckpoint(directory / name, save_top_k=-1, filename="{epoch}")
        net.validation_step = lambda batch, batch_idx: None
        _, runner = fit(averages, saver, RestoreRandomState(), net=net, val=True, **settings)
        results[name] = {"net": dict(net.state_dict()), "averages": averages.state_dict()}
    torch.save(results, directory / f"rank{runner.global_rank}.pt")
    return results


class Sharded(Net):
    def __init__(self):
        super().__init__()
        self.path = None
        self.outputs = []

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.outputs.append(self(batch[0]).detach())

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        if not hasattr(self.layers[0], "reshard"):
            mesh = self.device_mesh["data_parallel"]
            for layer in (self.layers[0], self):  # the root's own weights stay gathered after a validation
                fully_shard(layer, mesh=mesh)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def sharded(directory, ckpt_path=None):
    """The same, with FSDP2; first a whole run, then one that goes on from its first epoch."""
    results = {}
    for name, path in (("whole", None), ("resumed", directory / "whole" / "epoch=0.ckpt")):
        averages, net = AverageWeights([BEMA(), EMA(decay=0.9)]), Sharded()
        saver = ModelCheckpoint(directory / name, save_top_k=-1, filename="{epoch}")
        strategy = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=directory.name == "distributed"
        )
        mine = {"data": loader(rank=RANK), "use_distributed_sampler": False}
        mine["val_check_interval"] = 1  # no saving, which reshards, between most validations and the training after
        settings = {"devices": 2, "strategy": strategy, "ckpt_path": path, **mine}
        _, runner = fit(averages, saver, net=net, val=True, **settings)
        results[name] = {"averages": averages.state_dict(), "outputs": net.outputs}
        results[name]["net"] = {k: v.full_tensor() for k, v in net.state_dict().items()}
    torch.save(results, directory / f"rank{runner.global_rank}.pt")


if __name__ == "__main__":
    run, directory, *rest = sys.argv[1:]
    if run == "killed":
        single(Path(directory), stop=True)
    else:
        {"ddp": ddp, "sharded": sharded}[run](Path(directory), *rest)
