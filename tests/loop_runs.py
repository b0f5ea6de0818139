"""Loops in two processes: ``python loop_runs.py DIRECTORY`` writes what each rank holds at the end."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from helpers import data
from lightning.fabric import Fabric
from torch import nn

import lightning_objectives as lo

ROWS = 8


def joined(fabric):
    """SAM by the mean of the gradients, an average, and statistics of the average over all data."""
    rank, ranks = fabric.global_rank, fabric.world_size
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    norm = nn.BatchNorm1d(4, momentum=None).double()
    optimizer = torch.optim.SGD([*net.parameters(), *norm.parameters()], lr=0.1, momentum=0.9)
    whole = nn.Sequential(norm.eval(), net)
    model, wrapped = fabric.setup(whole, optimizer)
    x, y = data(dtype=torch.float64).tensors
    batches = [(a[rank::ranks], b[rank::ranks]) for a, b in zip(x.split(ROWS), y.split(ROWS))]
    average = lo.Average(whole, lo.EMA(decay=0.5), wrapped)
    for a, b in batches:
        wrapped.zero_grad()
        lo.perturbed_backward(
            lo.SAM(rho=0.5),
            whole,
            lambda a=a, b=b: F.cross_entropy(model(a), b),
            backward=fabric.backward,
            across_ranks=True,
        )
        wrapped.step()
        average.update()
    norm.train()
    passes = lambda: whole(x[rank::ranks])  # noqa: E731
    recalibrated = lo.Average(whole, lo.EMA(), buffers="recalibrate", passes=passes)
    recalibrated.update()
    state = recalibrated.averaged_state_dict()
    weights = average.averaged_state_dict()
    return {
        "weights": dict(whole.named_parameters()),
        "average": {name: weights[name] for name, _ in whole.named_parameters()},
        "mean": {"mean": state["0.running_mean"]},
        "steps": torch.tensor(average.steps),
    }


if __name__ == "__main__":
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    torch.save(joined(fabric), Path(sys.argv[2]) / f"rank{fabric.global_rank}.pt")
