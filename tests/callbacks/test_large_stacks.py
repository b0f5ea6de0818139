"""Large stacks of a wrapped head are computed one after the other: the training is that of all at once."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit
from torch import nn

from lightning_objectives._step import chunks
from lightning_objectives.batches import Mixup
from lightning_objectives.callbacks import (
    AddRegularizer,
    Distill,
    PerturbWeights,
    ReplaceLoss,
    ReweightSamples,
    TransformBatch,
    WrapHead,
)
from lightning_objectives.distillation import VanillaKD
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.losses import FocalLoss
from lightning_objectives.perturbations import SAM
from lightning_objectives.regularizers import ConfidencePenalty
from lightning_objectives.weighting import LossBasedReweighting


class Ignoring(Net):
    def criterion(self, logits, y):
        return F.cross_entropy(logits / 2, y, ignore_index=1, label_smoothing=0.1)


class Reduced(Net):
    def criterion(self, logits, y):
        return (F.cross_entropy(logits, y, reduction="none") * torch.arange(8.0)).sum() / 4


class Sequences(Net):
    """Logits (N, T, C) that the step flattens, as a language model does."""

    def forward(self, x):
        return self.fc(self.backbone(x[:, None].expand(-1, 5, -1)))

    def criterion(self, logits, y):
        return F.cross_entropy(logits[:, 1:].flatten(0, 1).float(), y[:, None].expand(-1, 4).flatten())


def head():
    return WrapHead(MultiSampleDropout(num_samples=3, p=0.5))


BESIDE = {
    "alone": list,
    "weights": lambda: [ReweightSamples(LossBasedReweighting())],
    "a loss": lambda: [ReplaceLoss(FocalLoss())],
    "a teacher": lambda: [Distill(VanillaKD(), teacher=Net())],
    "a penalty": lambda: [AddRegularizer(ConfidencePenalty(), strength=0.1)],
    "mixup": lambda: [TransformBatch(Mixup())],
    "two passes": lambda: [PerturbWeights(SAM(rho=0.1))],
}


@pytest.fixture
def large(monkeypatch):
    def switch(size):
        monkeypatch.setattr(chunks, "LARGE", size)

    return switch


NETS = Net, Ignoring, Reduced, Sequences
ONE_ROW_A_SAMPLE = {"a teacher", "mixup"}


@pytest.mark.parametrize(
    ("name", "net"),
    [(name, net) for name in BESIDE for net in NETS if not (net is Sequences and name in ONE_ROW_A_SAMPLE)],
)
def test_the_training_is_that_of_all_stacks_at_once(name, net, large):
    ends = []
    for size in (10**9, 0):
        large(size)
        torch.manual_seed(3)
        callbacks = [head(), *BESIDE[name]()]
        ends.append(fit(*callbacks, net=net, accumulate_grad_batches=2)[0])
    whole, parts = ends
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-5, atol=1e-6)


class Half(nn.Linear):
    """No linear function of its features."""

    def forward(self, features):
        return super().forward(features) / 2


class Own(Net):
    def __init__(self):
        super().__init__()
        self.fc = Half(6, 3)


@pytest.mark.parametrize(("net", "rows"), [(Net, 7 * [8]), (Own, [24])], ids=["linear", "not linear"])
def test_no_two_stacks_of_a_linear_head_are_held_together(net, rows, large, monkeypatch):
    """It sees the mean first, and then one stack at a time, forwards and again backwards."""
    large(0)
    seen, forward = [], nn.Linear.forward

    def counting(self, features):
        if self.out_features == 3:
            seen.append(len(features))
        return forward(self, features)

    monkeypatch.setattr(nn.Linear, "forward", counting)
    fit(head(), net=net, max_epochs=1, limit_train_batches=1)
    assert seen == rows


def test_what_cannot_be_followed_is_refused(large):
    large(0)

    class Sorted(Net):
        def forward(self, x):
            return super().forward(x).sort(1).values

    with pytest.raises(ValueError, match="cannot be repeated on each stack"):
        fit(head(), net=Sorted, max_epochs=1)
