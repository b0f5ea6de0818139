"""Losses for several labels, for one logit and for classes: what ReplaceLoss hands to each of them."""

import pytest
import torch
import torch.nn.functional as F
from bare_step import loss_and_gradient

from lightning_objectives.callbacks import ReplaceLoss, ReweightSamples
from lightning_objectives.discovery import methods
from lightning_objectives.losses import LogitAdjustedLoss, logit_adjusted_loss
from lightning_objectives.signals import signals_of
from lightning_objectives.testing import build
from lightning_objectives.weighting import SmallLossSelection

OF_LOGITS = [cls for _, cls in methods("losses") if {*signals_of(build(cls))} <= {"logits", "target", "mask"}]
"""Those that ask for nothing else, and draw nothing."""
OF_LABELS = [cls for cls in OF_LOGITS if "labels" in cls.problems]
OF_BINARY = [cls for cls in OF_LOGITS if "binary" in cls.problems]
OF_CLASSES = [cls for cls in OF_LOGITS if "classes" in cls.problems]
NAME = {"ids": lambda cls: cls.__name__}
LABELS = torch.tensor([[1.0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]])


def value_of(criterion, z, y, *callbacks, **settings):
    return loss_and_gradient(lambda module, z, y: criterion(z, y), (z, y), *callbacks, **settings)[0]


@pytest.mark.parametrize("cls", OF_LABELS, **NAME)
def test_several_labels(cls):
    z = torch.randn(4, 3)
    value = value_of(F.binary_cross_entropy_with_logits, z, LABELS, ReplaceLoss(build(cls)))
    torch.testing.assert_close(value, build(cls)(z, LABELS).mean())


@pytest.mark.parametrize("cls", OF_BINARY, **NAME)
@pytest.mark.parametrize("column", [True, False])
def test_one_logit(cls, column):
    z, y = torch.randn(6, 1), torch.tensor([[0.0], [1], [1], [0], [1], [0]])
    inputs = (z, y) if column else (z[:, 0], y[:, 0])
    value = value_of(F.binary_cross_entropy_with_logits, *inputs, ReplaceLoss(build(cls)))
    torch.testing.assert_close(value, build(cls)(z, y).mean())


@pytest.mark.parametrize("cls", OF_CLASSES, **NAME)
def test_ignored_targets_stay_ignored(cls):
    z, y = torch.randn(6, 3), torch.tensor([0, -100, 2, 1, -100, 0])
    kept = y >= 0
    value = value_of(F.cross_entropy, z, y, ReplaceLoss(build(cls)))
    torch.testing.assert_close(value, build(cls)(z[kept], y[kept]).mean())


def test_counts_of_a_problem_of_one_logit_are_those_of_its_two_classes():
    """One logit z is (0, z), so 3 and 1 samples make it z + log 1/3."""
    z, y = torch.randn(6), torch.tensor([0.0, 1, 1, 0, 1, 0])
    value = value_of(F.binary_cross_entropy_with_logits, z, y, ReplaceLoss(LogitAdjustedLoss(counts=(3, 1))))
    expected = F.binary_cross_entropy_with_logits(z + torch.tensor(1 / 3).log(), y)
    torch.testing.assert_close(value, expected)
    columns = torch.stack([torch.zeros(6), z], 1)
    torch.testing.assert_close(value, logit_adjusted_loss(columns, y.long(), counts=(3, 1)).mean())


def test_the_selection_of_small_losses_follows_the_epochs():
    """In the third of five epochs 0.5 · 3 / 5 of ten samples are left out."""
    z, y = torch.randn(10, 3), torch.arange(10) % 3
    method = SmallLossSelection(forget_rate=0.5, ramp_epochs=5)
    value = value_of(F.cross_entropy, z, y, ReweightSamples(method), current_epoch=2)
    lowest = F.cross_entropy(z, y, reduction="none").sort().values[:7]
    torch.testing.assert_close(value, lowest.mean())
