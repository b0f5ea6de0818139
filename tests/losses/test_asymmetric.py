import math

import pytest
import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel

from lightning_objectives.losses import AsymmetricLoss, asymmetric_loss

LOGITS, LABELS = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])


def slow(x, t, gamma_neg, gamma_pos, clip):
    """One element in plain Python."""
    p = 1 / (1 + math.exp(-x))
    m = max(p - clip, 0)
    return -t * (1 - p) ** gamma_pos * math.log(p) - (1 - t) * m**gamma_neg * math.log(1 - m)


@pytest.mark.parametrize(("gamma_pos", "expected"), [(0.0, 0.404516), (1.0, 0.175504)])
def test_worked_values(gamma_pos, expected):
    """-log 0.731059 = 0.313262 (times 0.268941), 0.069203^4 · 0.071714 and 0.572459^4 · 0.849706."""
    loss = asymmetric_loss(LOGITS, LABELS, gamma_pos=gamma_pos)
    torch.testing.assert_close(loss, torch.tensor([expected]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.05, 0.3])
def test_equals_a_plain_loop_and_timm(clip):
    logits, labels = torch.randn(5, 4), (torch.rand(5, 4) < 0.3).float()
    settings = {"gamma_neg": 3.0, "gamma_pos": 0.5, "clip": clip}
    losses = asymmetric_loss(logits, labels, **settings)
    rows = [sum(slow(x, t, **settings) for x, t in zip(*row)) for row in zip(logits.tolist(), labels.tolist())]
    torch.testing.assert_close(losses, torch.tensor(rows), rtol=1e-5, atol=1e-5)
    peer = AsymmetricLossMultiLabel(**settings)(logits, labels)
    torch.testing.assert_close(losses.mean(), peer, rtol=1e-4, atol=1e-5)


def test_the_two_gradients():
    """With the powers stopped: -0.268941 · 0.268941, and 0.069203^4 or 0.572459^4 times p (1 - p) / (1 - p_m)."""

    def gradient(**settings):
        logits = LOGITS.clone().requires_grad_()
        return torch.autograd.grad(asymmetric_loss(logits, LABELS, gamma_pos=1.0, **settings).sum(), logits)[0]

    stopped = gradient(stop_gradient=True)
    expected = torch.tensor([[-0.072329, 2.58705e-6, 0.059030]])
    torch.testing.assert_close(stopped, expected, rtol=1e-4, atol=1e-9)
    assert ((gradient() / stopped)[0] > 1.8).all()


def test_without_powers_and_clip_it_is_binary_cross_entropy():
    logits, labels = torch.randn(5, 4), torch.rand(5, 4)
    losses = asymmetric_loss(logits, labels, gamma_neg=0.0, gamma_pos=0.0, clip=0.0)
    torch.testing.assert_close(losses, F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1))


@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
def test_a_negative_label_below_the_clip_costs_nothing(gamma_neg):
    logits = torch.tensor([[-3.0, -200.0]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.zeros(1, 2), gamma_neg=gamma_neg)
    assert loss.item() == 0
    assert torch.autograd.grad(loss.sum(), logits)[0].tolist() == [[0, 0]]


def test_a_positive_label_far_away_still_has_a_gradient():
    """Raising probabilities to 1e-8 takes it away, and in half precision 1e-8 is 0."""
    logits = torch.tensor([[-40.0]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.ones(1, 1))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0], torch.tensor([[-1.0]]))


def test_gradients_stay_switched_off_for_the_caller():
    """The authors' code switches them on."""
    with torch.no_grad():
        asymmetric_loss(LOGITS, LABELS, stop_gradient=True)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma_neg": -1.0}, r"gamma_neg=-1\.0 must be >= 0"),
        ({"gamma_pos": -1.0}, r"gamma_pos=-1\.0 must be >= 0"),
        ({"clip": 1.0}, r"clip=1\.0 must be in \[0, 1\)"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AsymmetricLoss(**settings)
