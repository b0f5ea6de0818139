import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss as torchvision_loss

from lightning_objectives.losses import SigmoidFocalLoss, sigmoid_focal_loss

LOGITS = torch.tensor([[0.3, -1.2], [2.0, -0.5]])
LABELS = torch.tensor([[1.0, 0.0], [0.0, 0.0]])


def slow(x, t, gamma, alpha):
    """One element in plain Python."""
    p = 1 / (1 + math.exp(-x))
    return -t * alpha * (1 - p) ** gamma * math.log(p) - (1 - t) * (1 - alpha) * p**gamma * math.log(1 - p)


def test_worked_values():
    """x = 0.3, t = 1: 0.025098; x = -1.2, t = 0: 0.010580."""
    losses = sigmoid_focal_loss(LOGITS[:1].mT, LABELS[:1].mT)
    torch.testing.assert_close(losses, torch.tensor([0.025098, 0.010580]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("gamma", "alpha"), [(0.5, 0.25), (2.0, 0.9)])
def test_equals_a_plain_loop_and_torchvision(gamma, alpha):
    losses = sigmoid_focal_loss(LOGITS, LABELS, gamma=gamma, alpha=alpha)
    rows = [sum(slow(x, t, gamma, alpha) for x, t in zip(*row)) for row in zip(LOGITS.tolist(), LABELS.tolist())]
    torch.testing.assert_close(losses, torch.tensor(rows))
    torch.testing.assert_close(losses, torchvision_loss(LOGITS, LABELS, alpha=alpha, gamma=gamma).sum(1))


def test_labels_between_zero_and_one_mix_the_two_terms():
    """x = 0.7, t = 0.3: 0.3 and 0.7 of the two terms, 0.261915; torchvision has 0.172457."""
    loss = sigmoid_focal_loss(torch.tensor([[0.7]]), torch.tensor([[0.3]]))
    torch.testing.assert_close(loss, torch.tensor([0.261915]), rtol=0, atol=1e-6)


def test_without_gamma_and_weight_it_is_binary_cross_entropy():
    expected = F.binary_cross_entropy_with_logits(LOGITS, LABELS, reduction="none").sum(1)
    torch.testing.assert_close(sigmoid_focal_loss(LOGITS, LABELS, gamma=0.0, alpha=None), expected)
    torch.testing.assert_close(sigmoid_focal_loss(LOGITS, LABELS, gamma=0.0, alpha=0.5), expected / 2)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_saturated_label_has_no_gradient_and_no_nan(gamma):
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([[1.0, 0.0]]), gamma=gamma)
    assert loss.item() == 0
    assert torch.autograd.grad(loss.sum(), logits)[0].tolist() == [[0, 0]]


def test_a_wrong_label_far_away_still_has_a_gradient():
    logits = torch.tensor([[-40.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.ones(1, 1), alpha=None)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0], torch.tensor([[-1.0]]))


def test_a_masked_class_that_is_absent_costs_nothing():
    assert sigmoid_focal_loss(torch.tensor([[-torch.inf]]), torch.zeros(1, 1)).item() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gamma": -1.0}, r"gamma=-1\.0 must be >= 0"), ({"alpha": 1.5}, r"alpha=1\.5 must be in \[0, 1\], or None")],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SigmoidFocalLoss(**settings)
