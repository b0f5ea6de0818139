import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import ProbabilityPowerLoss, probability_power_loss

P = torch.tensor([[0.2, 0.5, 0.3]])


def losses_of(target, **settings):
    return probability_power_loss(P.log(), target, **settings)


@pytest.mark.parametrize(("power", "expected"), [(1.0, 0.5), (2.0, 0.375), (10.0, (1 - 1 / 1024) / 10)])
def test_by_hand(power, expected):
    torch.testing.assert_close(losses_of(torch.tensor([1]), power=power), torch.tensor([expected]))


@pytest.mark.parametrize(
    ("keep", "expected"), [("all", [0.8, 0.5, 0.7]), ("above", [0, 0.5, 0.7]), ("below", [0.8, 0, 0])]
)
def test_the_threshold_keeps_one_side(keep, expected):
    losses = [losses_of(torch.tensor([k]), keep=keep, threshold=0.25).item() for k in range(3)]
    assert losses == pytest.approx(expected)


def test_the_threshold_itself_is_kept_on_both_sides():
    logits = torch.zeros(1, 2, dtype=torch.float64)
    for keep in ("above", "below"):
        assert probability_power_loss(logits, torch.tensor([0]), keep=keep, threshold=0.5).item() == pytest.approx(0.5)


def test_cross_entropy_may_have_a_threshold_too():
    loss = losses_of(torch.tensor([[0.5, 0.5, 0.0]]), power=0.0, keep="above", threshold=0.25)
    torch.testing.assert_close(loss, torch.tensor([0.5 * math.log(2)]))


def test_no_power_is_cross_entropy_and_a_tiny_one_nearly():
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    expected = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(probability_power_loss(logits, target, power=0.0), expected)
    torch.testing.assert_close(probability_power_loss(logits, target, power=1e-6), expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_one_is_that_of_cross_entropy_times_p():
    logits, target = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.arange(6) % 3
    ce = F.cross_entropy(logits, target, reduction="none")
    plain = torch.autograd.grad(ce.sum(), logits)[0]
    ours = torch.autograd.grad(probability_power_loss(logits, target, power=1.0).sum(), logits)[0]
    torch.testing.assert_close(ours, plain * (-ce.detach()).exp()[:, None])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"power": -1.0}, r"power=-1\.0 must be >= 0"),
        ({"keep": "none"}, "keep='none' must be 'all', 'above' or 'below'"),
        ({"threshold": 0.0}, r"threshold=0\.0 must be in \(0, 1\)"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ProbabilityPowerLoss(**settings)
