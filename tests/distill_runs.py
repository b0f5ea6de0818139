"""Distillations in two processes: ``python distill_runs.py RUN DIRECTORY`` writes what each rank holds at the end."""

import sys
from pathlib import Path

import torch
from step_runs import Strided, train
from torch import nn

from lightning_objectives.callbacks import CombineTerms, Distill
from lightning_objectives.combination import GradientAlignment
from lightning_objectives.distillation import CRD, DualHead, VanillaKD


def teacher():
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()


def by_norm(gradients):
    """Weights that, unlike the alignment's, depend on the size of the gradients."""
    return 1 + gradients.norm(dim=1)


def joined(devices):
    """2 processes of 4 samples equal one of 8; alpha is large, so that the gradients come to oppose each other."""
    runs = {
        "dual": [Distill(DualHead(alpha=5.0), teacher=teacher())],
        "aligned": [Distill(DualHead(alpha=5.0, align=True), teacher=teacher())],
        "stopped": [Distill(DualHead(alpha=5.0, stop_epoch=1), teacher=teacher())],
        "norms": [Distill(VanillaKD(), teacher=teacher()), CombineTerms(by_norm)],
        "combined": [Distill(VanillaKD(), teacher=teacher(), weight=9.0), CombineTerms(GradientAlignment())],
    }
    results = {}
    for name, callbacks in runs.items():
        results[name] = train(*callbacks, batches=Strided(), devices=devices)
        results[name]["net"] |= {f"auxiliary.{k}": v for k, v in callbacks[0].method.state_dict().items()}
    accumulated = Distill(DualHead(alpha=5.0, align=True), teacher=teacher())
    results["accumulated"] = train(accumulated, batches=Strided(), devices=devices, accumulate_grad_batches=2)
    return results


def banks(devices):
    """Each process draws negatives of its own, and all remember the vectors of all samples."""
    callback = Distill(CRD(negatives=5), teacher=teacher())
    result = train(callback, batches=Strided(), devices=devices)
    return {"banks": {**result, **callback.state_dict()}}


if __name__ == "__main__":
    results = {"joined": joined, "banks": banks}[sys.argv[1]](2)
    rank = next(iter(results.values()))["rank"]
    torch.save(results, Path(sys.argv[2]) / f"rank{rank}.pt")
