"""Trainings in two processes: ``python step_runs.py RUN DIRECTORY`` writes what each rank holds at the end."""

import sys
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from helpers import Net, data, trainer
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler
from torchmetrics import MetricCollection

from lightning_objectives.averaging import BEMA
from lightning_objectives.calibration import IsotonicCalibration, TemperatureScaling
from lightning_objectives.callbacks import (
    AddRegularizer,
    AverageWeights,
    Calibrate,
    CombineTerms,
    LogMetrics,
    PerturbWeights,
    ReweightSamples,
    TransformGradients,
    WrapHead,
)
from lightning_objectives.combination import PCGrad, UncertaintyWeighting
from lightning_objectives.data.with_index import with_index
from lightning_objectives.gradients import ComponentwiseGradClip, OrthogonalGradient
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.kinds import Regularizer
from lightning_objectives.metrics import OODDetection, RankMe, default_metrics
from lightning_objectives.perturbations import SAM
from lightning_objectives.prediction_sets import APS
from lightning_objectives.regularizers import EarlyLearningRegularization, symmetric_kl
from lightning_objectives.weighting import FeasibleLearning, LossBasedReweighting


class MasksBySample(MultiSampleDropout):
    """The masks are a function of the sample, so that they are the same on one process and on two."""

    def forward(self, features, head, index):
        kept = [
            (torch.rand(self.num_samples, features.shape[1], generator=torch.Generator().manual_seed(int(i))) > self.p)
            for i in index
        ]
        masks = torch.stack(kept, 1).to(features.dtype) / (1 - self.p)
        rows = (features * masks).flatten(0, 1)
        return head(rows).unflatten(0, (self.num_samples, len(features)))


def moved_by_row(logits, inputs, index, again):
    """Two passes, the second with a direction that is a function of the sample."""
    return symmetric_kl(logits, again(inputs + torch.sin(index[:, None] + torch.arange(4.0))))


def by_loss(losses):
    return losses / losses.mean()


class Learned(Regularizer):
    """A method with a parameter, which must stay the same on all ranks."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, logits):
        return (self.scale - logits).square().mean(1)


class Switched(Learned):
    """It stops after the second step; DDP must not miss its parameter."""

    def active(self, *, step):
        return step < 2


class TwoLosses(Net):
    """Two criteria that pull against each other."""

    def criterion(self, logits, y):
        return F.cross_entropy(logits, y) + 2 * F.cross_entropy(logits, (y + 1) % 3)


def train(*callbacks, batches, devices, epochs=2, net=Net, **kwargs):
    L.seed_everything(0, verbose=False)
    net = net(dtype=torch.float64)
    strategy = {"strategy": "ddp", "devices": 2} if devices == 2 else {}
    runner = trainer(*callbacks, max_epochs=epochs, use_distributed_sampler=False, **strategy, **kwargs)
    runner.fit(net, batches)
    return {"net": {k: v.clone() for k, v in net.state_dict().items()}, "rank": runner.global_rank}


class Strided(L.LightningDataModule):
    """Batch k of all ranks together is batch k of one process."""

    def train_dataloader(self):
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        everything = with_index(data(dtype=torch.float64))
        sampler = DistributedSampler(everything, num_replicas=ranks, rank=rank, shuffle=False)
        return DataLoader(everything, batch_size=8 // ranks, sampler=sampler)


class Validated(Strided):
    """The same data for the validation."""

    def val_dataloader(self):
        return self.train_dataloader()


def joined(devices):
    """Everything that couples samples or ranks; 2 processes of 4 samples equal one of 8."""
    batches = Strided()
    results = {}
    for strategy in ("lin_upper", "quadratic", "extremes"):
        method = LossBasedReweighting(strategy=strategy, temperature=0.4)
        results[strategy] = train(ReweightSamples(method), batches=batches, devices=devices)
    head = WrapHead(MasksBySample(num_samples=3, p=0.5))
    results["dropout"] = train(head, batches=batches, devices=devices)
    average = AverageWeights(BEMA())
    everything = [head, ReweightSamples(LossBasedReweighting()), average, AddRegularizer(Learned(), strength=0.1)]
    results["everything"] = train(*everything, batches=batches, devices=devices)
    results["everything"]["net"] |= {f"bema.{k}": v for k, v in average.weights("bema").items()}
    results["accumulated"] = train(
        ReweightSamples(LossBasedReweighting()), batches=batches, devices=devices, accumulate_grad_batches=2
    )
    transform = TransformGradients([OrthogonalGradient(), ComponentwiseGradClip(max_norm=0.1)])
    results["gradients"] = train(transform, AddRegularizer(Learned()), batches=batches, devices=devices)
    calibrate = Calibrate(TemperatureScaling())
    results["calibrated"] = train(
        calibrate, AddRegularizer(Learned()), batches=Validated(), devices=devices, max_steps=3
    )
    results["calibrated"]["net"] |= calibrate.calibrator.state_dict()
    moved = PerturbWeights(SAM(rho=0.5), across_ranks=True)
    results["moved"] = train(moved, ReweightSamples(LossBasedReweighting()), batches=batches, devices=devices)
    product = [ReweightSamples(by_loss), ReweightSamples(LossBasedReweighting())]
    results["product"] = train(*product, batches=batches, devices=devices)
    remembering = [
        ReweightSamples(FeasibleLearning(tolerance=0.5)),
        AddRegularizer(EarlyLearningRegularization(), strength=0.1),
    ]
    results["remembered"] = train(*remembering, batches=batches, devices=devices)
    for callback in remembering:
        results["remembered"]["net"] |= callback.state_dict()
    results["again"] = train(AddRegularizer(moved_by_row), batches=batches, devices=devices)
    for name, method in {"pcgrad": PCGrad(), "uncertainty": UncertaintyWeighting(tasks=["classification"] * 2)}.items():
        combine = CombineTerms(method, criteria=True)
        results[name] = train(combine, batches=batches, devices=devices, net=TwoLosses)
        results[name]["net"] |= combine.state_dict()
    results["switched"] = train(AddRegularizer(Switched(), strength=0.1), batches=batches, devices=devices)
    return results


class TwoSets(Strided):
    """A second set without targets for the validation, of another distribution."""

    def val_dataloader(self):
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        others = data(seed=1, dtype=torch.float64).tensors[0] / 5
        sampler = DistributedSampler(others, num_replicas=ranks, rank=rank, shuffle=False)
        return [self.train_dataloader(), DataLoader(others, batch_size=8 // ranks, sampler=sampler)]


class OneLabelled(Net):
    """Only the first loader has targets."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self(batch) if dataloader_idx else super().validation_step(batch, batch_idx)


def evaluated(devices):
    """What is measured and fitted in a validation."""
    calibrate, sets = Calibrate(IsotonicCalibration()), Calibrate(APS(alpha=0.2, randomized=False))
    log = LogMetrics(MetricCollection({"ood": OODDetection(), "rank": RankMe(), **default_metrics(3)}))
    strategy = {"strategy": "ddp", "devices": 2} if devices == 2 else {}
    L.seed_everything(0, verbose=False)
    runner = trainer(calibrate, sets, log, use_distributed_sampler=False, **strategy)
    runner.validate(OneLabelled(dtype=torch.float64), datamodule=TwoSets(), verbose=False)
    logged = {key: value.double() for key, value in runner.callback_metrics.items() if "val/" in key}
    state = {**calibrate.calibrator.state_dict(), **sets.calibrator.state_dict()}
    return {"evaluated": {"net": logged | state, "rank": runner.global_rank}}


def moved_by_rank(devices):
    """Each of two processes moves its weights by its own gradient; one process does both by hand."""
    if devices == 2:
        return {"net": train(PerturbWeights(SAM(rho=0.5)), batches=Strided(), devices=2)}
    L.seed_everything(0, verbose=False)
    net = Net(dtype=torch.float64)
    (optimizer, everything), params = (net.configure_optimizers(), data(dtype=torch.float64)), list(net.parameters())
    for first in [*range(0, 24, 8)] * 2:
        gradients = []
        for rank in range(2):
            rows = [everything[i] for i in range(first + rank, first + 8, 2)]
            x, y = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

            def gradient(x=x, y=y):
                return torch.autograd.grad(net.criterion(net(x), y), params)

            here = gradient()
            norm = torch.stack([g.norm() for g in here]).norm()
            copies = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p, g in zip(params, here):
                    p.add_(0.5 * g / norm)
            gradients.append(gradient())
            with torch.no_grad():
                for p, copy in zip(params, copies):
                    p.copy_(copy)
        for p, *of_ranks in zip(params, *gradients):
            p.grad = sum(of_ranks) / 2
        optimizer.step()
    return {"net": {"net": dict(net.state_dict())}}


class Uneven(BatchSampler):
    """Batches of 4 and 3 samples on the first rank, of 4 and 2 on the second."""

    def __init__(self, rank):
        self.batches = [[0, 1, 2, 3], [4, 5, 6]] if rank == 0 else [[8, 9, 10, 11], [12, 13]]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return 2


class Spy(LossBasedReweighting):
    """Keeps the losses that it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, losses):
        self.seen.append(losses.clone())
        return super().forward(losses)


class PerRank(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(data(dtype=torch.float64), batch_sampler=Uneven(self.trainer.global_rank))


def uneven(devices):
    def run(*callbacks):
        return train(*callbacks, batches=PerRank(), devices=devices)

    spy = Spy()
    ones = ReweightSamples(lambda losses: torch.ones_like(losses))
    results = {"plain": run(), "ones": run(ones), "weighted": run(ReweightSamples(spy))}
    return results | {"seen": spy.seen}


if __name__ == "__main__":
    results = {"joined": joined, "evaluated": evaluated, "moved_by_rank": moved_by_rank, "uneven": uneven}[sys.argv[1]](
        2
    )
    rank = next(iter(results.values()))["rank"]
    torch.save(results, Path(sys.argv[2]) / f"rank{rank}.pt")
