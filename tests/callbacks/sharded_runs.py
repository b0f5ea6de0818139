"""Averaging, merging and reweighting together: ``python sharded_runs.py RUN DIRECTORY``."""

import sys
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from averaging_nets import trainer
from helpers import data
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks import AverageWeights, Distill, MergeCheckpoints, ReweightSamples
from lightning_objectives.distillation import DualHead
from lightning_objectives.merging import WSM
from lightning_objectives.weighting import LossBasedReweighting


class Net(L.LightningModule):
    """No dimension is even, so that no shard is half of a tensor; two of them are of a single row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.backbone = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1), nn.Tanh())
        self.fc = nn.Linear(1, 3)
        self.double()
        self.rows = []

    def forward(self, x):
        return self.fc(self.backbone(x))

    def training_step(self, batch, batch_idx):
        self.rows += [p.to_local().shape[0] for p in self.parameters() if hasattr(p, "to_local")]
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)

    def loader(self):
        mine = data(dtype=torch.float64)
        sampler = DistributedSampler(mine, self.trainer.world_size, self.trainer.global_rank, shuffle=False)
        return DataLoader(mine, batch_size=8 // self.trainer.world_size, sampler=sampler)

    train_dataloader = val_dataloader = loader


class Sharded(Net):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        if not hasattr(self.fc, "reshard"):
            for layer in (self.backbone[0], self.fc, self):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


def two_dimensional(*, distributed):
    # the default sizes would shard nothing
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=distributed)


def train(directory, *, strategy, net=Net, epochs=2, ckpt_path=None):
    """All that is there at the end."""
    averages = AverageWeights([BEMA(), EMA(decay=0.9)])
    merge = MergeCheckpoints(WSM(), last=4, every_n_steps=1, directory=directory / "merge")
    weighting = ReweightSamples(LossBasedReweighting(temperature=0.4))
    saver = ModelCheckpoint(directory, save_top_k=-1, filename="{epoch}")
    module = net()
    runner = trainer(
        averages, merge, weighting, saver, epochs=epochs, strategy=strategy, devices=2,
        use_distributed_sampler=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    runner.fit(module, ckpt_path=ckpt_path)
    wholes = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in module.state_dict().items()}
    merged = torch.load(merge.path, weights_only=True)
    assert merged["global_step"] == runner.global_step
    return {
        "net": {name: value.clone() for name, value in wholes.items()},
        "averages": averages.state_dict(),
        "merged": dict(merged["state_dict"]),
        "logged": {name: float(value) for name, value in runner.callback_metrics.items()},
        "rows": module.rows,
    }


def together(directory):
    """Sharded: a whole run, one that stops in the middle and one that goes on from there; and DDP."""
    results = {"ddp": train(directory / "ddp", strategy="ddp")}
    for kind in ("distributed", "consolidated"):

        def run(name, kind=kind, **settings):
            strategy = two_dimensional(distributed=kind == "distributed")
            return train(directory / f"{kind}-{name}", strategy=strategy, net=Sharded, **settings)

        results[kind] = run("whole")
        run("half", epochs=1)
        results[f"{kind}, resumed"] = run("resumed", ckpt_path=directory / f"{kind}-half" / "epoch=0.ckpt")
    distill = Distill(DualHead(), teacher=nn.Linear(4, 3).double())
    runner = trainer(distill, strategy=two_dimensional(distributed=False), devices=2, use_distributed_sampler=False)
    try:
        runner.fit(Sharded())
    except ValueError as error:
        results["refused"] = {"error": str(error), "steps": runner.global_step}
    return results


if __name__ == "__main__":
    run, directory = sys.argv[1], Path(sys.argv[2])
    results = {"together": together}[run](directory)
    torch.save(results, directory / f"rank{torch.distributed.get_rank()}.pt")
