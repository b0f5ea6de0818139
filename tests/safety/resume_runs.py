"""A training with each callback that keeps a state, and its checkpoint."""

import lightning as L
import torch
from helpers import Net, data, loader, trainer
from torch.utils.data import DataLoader

from lightning_objectives import callbacks as ours
from lightning_objectives.adaptation import LAME
from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.batches import Mixup
from lightning_objectives.calibration import TemperatureScaling
from lightning_objectives.combination import GradientAlignment
from lightning_objectives.data import with_index
from lightning_objectives.distillation import DualHead, VanillaKD
from lightning_objectives.gradients import OrthogonalGradient
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.kinds import GradientTransform
from lightning_objectives.losses import LDRLoss
from lightning_objectives.merging import WSM
from lightning_objectives.perturbations import SAM
from lightning_objectives.regularizers import L2SP, SpectralDecoupling
from lightning_objectives.surgery import StochasticDepth
from lightning_objectives.surveys import ClassCounts
from lightning_objectives.weighting import LossBasedReweighting


class Remembers(GradientTransform):
    """A transform with a state, which the methods of the package have none of."""

    def init(self, params):
        return {"last": [torch.zeros_like(p) for p in params], "count": 0}

    def update(self, gradients, params, state):
        state["count"] += 1
        state["last"] = [g.clone() for g in gradients]
        return gradients


def teacher():
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        return Net()


MERGE = {"last": 3, "every_n_steps": 1, "directory": "merge"}
MADE = {
    "AdaptAtTest": lambda: [ours.AdaptAtTest(LAME())],
    "AddRegularizer": lambda: [ours.AddRegularizer(SpectralDecoupling())],
    "AverageWeights": lambda: [ours.AverageWeights([EMA(decay=0.5), BEMA()])],
    "BEMACallback": lambda: [ours.BEMACallback()],
    "Calibrate": lambda: [ours.Calibrate(TemperatureScaling())],
    "ChangeLayers": lambda: [ours.ChangeLayers(StochasticDepth(rate=0.5), layers="backbone")],
    "CombineTerms": lambda: [
        ours.AddRegularizer(SpectralDecoupling()),
        ours.CombineTerms(GradientAlignment()),
    ],
    "Distill": lambda: [ours.Distill(VanillaKD(), teacher=teacher(), cache="cache")],
    "DualHeadKDCallback": lambda: [ours.DualHeadKDCallback(teacher=teacher())],
    "EMACallback": lambda: [ours.EMACallback(decay=0.5)],
    "LogMetrics": lambda: [ours.LogMetrics()],
    "LossReweightingCallback": lambda: [ours.LossReweightingCallback()],
    "MergeCheckpoints": lambda: [ours.MergeCheckpoints(WSM(), **MERGE)],
    "MultiSampleDropoutCallback": lambda: [ours.MultiSampleDropoutCallback(num_samples=2)],
    "Refer": lambda: [ours.Refer(), ours.AddRegularizer(L2SP())],
    "ReplaceLoss": lambda: [ours.ReplaceLoss(LDRLoss())],
    "RestoreRandomState": lambda: [ours.RestoreRandomState()],
    "PerturbWeights": lambda: [ours.PerturbWeights(SAM())],
    "ReweightSamples": lambda: [ours.ReweightSamples(LossBasedReweighting())],
    "SurveyData": lambda: [ours.SurveyData(ClassCounts())],
    "TransformBatch": lambda: [ours.TransformBatch(Mixup())],
    "TransformGradients": lambda: [ours.TransformGradients([OrthogonalGradient(), Remembers()])],
    "WSMCallback": lambda: [ours.WSMCallback(**MERGE)],
    "WrapHead": lambda: [ours.WrapHead(MultiSampleDropout(num_samples=2))],
    "DualHead": lambda: [ours.Distill(DualHead(), teacher=teacher())],
}
"""The callbacks by name, and one that brings modules of its own."""


def train(name):
    """A cache knows the samples by their index."""
    return DataLoader(with_index(data()) if name == "Distill" else data(), batch_size=8)


def run(name, net, *, epochs, ckpt_path=None, **settings):
    """A trainer, and what starts its training in the working directory."""
    runner = trainer(*MADE[name](), max_epochs=epochs, **settings)
    return runner, lambda: runner.fit(net, train(name), loader(seed=1), ckpt_path=ckpt_path)


def checkpoint(name, path):
    """The checkpoint of one epoch of a training in the working directory."""
    L.seed_everything(0, verbose=False)
    saver = L.pytorch.callbacks.ModelCheckpoint(path.parent, filename=path.stem, enable_version_counter=False)
    runner = trainer(*MADE[name](), saver, max_epochs=1, enable_checkpointing=True)
    runner.fit(Net(), train(name), loader(seed=1))
    return path
