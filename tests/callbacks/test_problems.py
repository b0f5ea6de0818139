"""A method says what kind of problem it is for, and is refused elsewhere in a sentence."""

import pytest
import torch
import torch.nn.functional as F
from bare_step import loss_and_gradient
from helpers import Net, equal, fit
from torch import nn

from lightning_objectives.callbacks import AddRegularizer, Distill, ReplaceLoss, ReweightSamples
from lightning_objectives.distillation import BinaryKL, VanillaKD
from lightning_objectives.losses import LDRLoss, ldr_loss
from lightning_objectives.regularizers import LogPartitionPenalty, SpectralDecoupling, log_partition_penalty
from lightning_objectives.weighting import FocalWeights, LossBasedReweighting


def net(criterion, classes=3):
    class Own(Net):
        def __init__(self):
            super().__init__(classes=classes)

        def criterion(self, logits, y):
            return criterion(logits, y)

    return Own


def hot(y):
    return F.one_hot(y, 3).float()


REGRESSION = net(lambda z, y: F.mse_loss(z, hot(y)))
LABELS = net(lambda z, y: F.binary_cross_entropy_with_logits(z, hot(y)))
BINARY = net(lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], (y > 0).float()), classes=1)
DISTRIBUTION = net(lambda z, y: F.kl_div(z.log_softmax(1), 0.8 * hot(y) + 0.2 / 3, reduction="batchmean"))
ROWS = net(lambda z, y: F.mse_loss(z[:, 0], y.float()))


@pytest.mark.parametrize(
    ("module", "callback", "found"),
    [
        (
            REGRESSION,
            ReplaceLoss(LDRLoss()),
            r"mse_loss of \(8, 3\), is another: its targets are numbers \(a regression\)",
        ),
        (ROWS, ReplaceLoss(LDRLoss()), r"mse_loss of \(8,\), is another: its targets are numbers"),
        (LABELS, ReplaceLoss(LDRLoss()), "is another: its targets are several labels that may hold together"),
        (REGRESSION, Distill(VanillaKD(), teacher=nn.Linear(4, 3)), "is another: its targets are numbers"),
        (
            REGRESSION,
            Distill(BinaryKL(), teacher=nn.Linear(4, 3)),
            "BinaryKL.* is for one class of several or one",
        ),
        (LABELS, Distill(VanillaKD(), teacher=nn.Linear(4, 3)), "is another: its targets are several labels"),
        (REGRESSION, AddRegularizer(LogPartitionPenalty()), "is another: its targets are numbers"),
        (REGRESSION, ReweightSamples(FocalWeights()), "FocalWeights.* is another: its targets are numbers"),
        (REGRESSION, ReweightSamples(FocalWeights(), unit="element"), "is another: its targets are numbers"),
    ],
)
def test_another_problem_is_refused(module, callback, found):
    with pytest.raises(ValueError, match=found) as error:
        fit(callback, net=module)
    assert "pass a function in place of the method: lambda" in str(error.value)


@pytest.mark.parametrize(
    ("module", "callback"),
    [
        (LABELS, Distill(BinaryKL(), teacher=nn.Linear(4, 3))),
        (REGRESSION, AddRegularizer(SpectralDecoupling(), strength=0.1)),
        (REGRESSION, ReweightSamples(LossBasedReweighting())),
        (REGRESSION, ReplaceLoss(lambda logits, target: (logits - target).abs().sum(1))),
        (DISTRIBUTION, ReplaceLoss(LDRLoss())),
        (BINARY, ReplaceLoss(LDRLoss())),
        (BINARY, AddRegularizer(LogPartitionPenalty())),
        (BINARY, ReweightSamples(FocalWeights())),
        (LABELS, ReweightSamples(FocalWeights())),
    ],
)
def test_what_means_something_works(module, callback):
    touched, _ = fit(callback, net=module)
    assert not equal(touched, fit(net=module)[0])


def test_one_logit_becomes_two_columns_for_a_method_for_classes():
    """By hand: (0, z) against classes, and its log-partition is softplus(z)."""
    z, y = torch.randn(6), torch.tensor([0.0, 1, 1, 0, 1, 0])

    def compute(module, z, y):
        return F.binary_cross_entropy_with_logits(z, y)

    value, _ = loss_and_gradient(compute, (z, y), ReplaceLoss(LDRLoss(temperature=0.5)))
    columns = torch.stack([torch.zeros_like(z), z], 1)
    torch.testing.assert_close(value, ldr_loss(columns, y.long(), temperature=0.5).mean())
    value, _ = loss_and_gradient(compute, (z, y), AddRegularizer(LogPartitionPenalty(), strength=1.0))
    expected = F.binary_cross_entropy_with_logits(z, y) + log_partition_penalty(columns).mean()
    torch.testing.assert_close(value, expected)


def test_targets_of_a_named_criterion_show_its_problem():
    def run(target, callback):
        return loss_and_gradient(
            lambda module, z, y: module.loss_fn(z, y),
            (torch.randn(4, 3), target),
            callback,
            criterion=lambda z, y: (z.softmax(1) - y).square().mean(),
        )

    run(torch.rand(4, 3).softmax(1), ReplaceLoss(LDRLoss(), criterion="loss_fn"))
    labels = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]])
    with pytest.raises(ValueError, match="is another: its targets are several labels"):
        run(labels, ReplaceLoss(LDRLoss(), criterion="loss_fn"))
    with pytest.raises(ValueError, match="its targets are numbers that show neither classes nor labels"):
        run(3 * torch.randn(4, 3), ReplaceLoss(LDRLoss(), criterion="loss_fn"))


def test_a_penalty_leaves_out_what_the_criterion_ignores():
    z, y = torch.randn(6, 3), torch.tensor([0, -100, 1, -100, 2, 2])

    def compute(module, z, y):
        return F.cross_entropy(z, y)

    for index in (-100, 2):
        criterion = lambda module, z, y: F.cross_entropy(z, y.clamp(min=0), ignore_index=index)  # noqa: B023, E731
        value, _ = loss_and_gradient(criterion, (z, y), AddRegularizer(SpectralDecoupling(), strength=1.0))
        kept = y.clamp(min=0) != index
        expected = F.cross_entropy(z, y.clamp(min=0), ignore_index=index) + (z[kept].square().sum(1) / 2).mean()
        torch.testing.assert_close(value, expected)
