"""Surveys in processes: ``python survey_runs.py RUN DIRECTORY`` writes what each rank holds at the end."""

import sys
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from helpers import Net, data, trainer
from torch.utils.data import DataLoader, DistributedSampler, SubsetRandomSampler

from lightning_objectives.callbacks import ReplaceLoss, SurveyData
from lightning_objectives.kinds import Survey
from lightning_objectives.loops import survey_data
from lightning_objectives.losses import BalancedSoftmaxLoss
from lightning_objectives.surveys import ClassCounts, Fisher

ROWS = 23
"""An odd number: two processes get 12 and 11 samples, and DDP's sampler repeats one."""


def net():
    torch.manual_seed(0)
    return Net(dropout=0.3, dtype=torch.float64)


def fit(*callbacks, devices, train=None, **settings):
    strategy = {"strategy": "ddp", "devices": 2} if devices == 2 else {}
    runner = trainer(*callbacks, max_epochs=1, limit_train_batches=1.0, **strategy, **settings)
    train = DataLoader(data(n=ROWS, dtype=torch.float64), batch_size=4, shuffle=True) if train is None else train
    runner.fit(net(), train)
    return runner.global_rank


def joined(devices):
    """In a training with DDP's own sampler, and without a Trainer."""
    counts = SurveyData(ClassCounts(), sets="counts")
    loss = BalancedSoftmaxLoss(counts=())
    fisher = SurveyData(Fisher())
    rank = fit(counts, ReplaceLoss(loss), devices=devices)
    fit(fisher, devices=devices)
    results = {"counts": counts.result, "set": {"counts": torch.tensor(loss.counts)}, "fisher": fisher.result}
    samples = data(n=ROWS, dtype=torch.float64)
    for drop in (False, True):
        sampler = DistributedSampler(samples, devices, rank, drop_last=drop)
        loader = DataLoader(samples, batch_size=4, sampler=sampler)
        results[f"loop {drop}"] = survey_data(Fisher(), net(), loader)
    # Lightning wraps a sampler of the user's; of its eleven samples one is repeated.
    chosen = DataLoader(samples, batch_size=4, sampler=SubsetRandomSampler(range(0, 21, 2)))
    some = SurveyData(ClassCounts())
    fit(some, devices=devices, train=chosen)
    results["some"] = some.result
    # One process gets no sample at all.
    few = data(n=1, dtype=torch.float64)
    sampler = DistributedSampler(few, devices, rank)
    results["few"] = survey_data(Fisher(), net(), DataLoader(few, sampler=sampler))
    return {"rank": rank, **results}


class FailsOnOne(Survey):
    def forward(self, logits):
        if torch.distributed.get_rank() == 1:
            raise ValueError("planted")
        return {"sum": logits.sum()}


def failing(devices):
    """An error of one process ends all of them; other samplers are told."""
    said = {}
    try:
        fit(SurveyData(FailsOnOne()), devices=devices)
    except (ValueError, RuntimeError) as error:
        said["error"] = str(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = DataLoader(data(n=ROWS, dtype=torch.float64), batch_size=4)
        counts = SurveyData(ClassCounts())
        rank = fit(counts, devices=devices, train=loader, use_distributed_sampler=False)
    said["warnings"] = [str(w.message) for w in caught if "SurveyData" in str(w.message)]
    return {"rank": rank, "twice": counts.result, **said}


class Slow(ClassCounts):
    """Says that it is in the middle, and waits to be killed."""

    def forward(self, logits, target):
        (Path(sys.argv[2]) / "ready").touch()
        time.sleep(600)


def killed(devices):
    """A survey that ends only by SIGKILL."""
    L.seed_everything(0, verbose=False)
    fit(SurveyData(Slow(), path=Path(sys.argv[2]) / "counts.safetensors"), devices=1)


if __name__ == "__main__":
    results = {"joined": joined, "failing": failing, "killed": killed}[sys.argv[1]](2)
    torch.save(results, Path(sys.argv[2]) / f"rank{results['rank']}.pt")
