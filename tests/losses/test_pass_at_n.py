import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import PassAtNLoss, pass_at_n_loss


def of(p, attempts, dtype=torch.float64):
    """The loss of a probability, by logits (log p, log (1 - p))."""
    logits = torch.tensor([[math.log(p), math.log1p(-p)]], dtype=dtype)
    return pass_at_n_loss(logits, torch.tensor([0]), attempts=attempts).item()


@pytest.mark.parametrize("attempts", [1, 2, 8, 256])
@pytest.mark.parametrize("p", [1e-3, 0.03, 0.5, 0.97])
def test_equals_exact_fractions(p, attempts):
    coverage = 1 - (1 - Fraction(p)) ** attempts
    missed = float(1 - coverage)
    expected = -math.log1p(-missed) if missed < 0.5 else -math.log(coverage)
    assert of(p, attempts) == pytest.approx(expected, rel=1e-8, abs=1e-14)


def test_one_attempt_is_cross_entropy():
    logits, target = 5 * torch.randn(20, 3), torch.arange(20) % 3
    losses = pass_at_n_loss(logits, target, attempts=1)
    torch.testing.assert_close(losses, F.cross_entropy(logits, target, reduction="none"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attempts", [1, 4, 64])
def test_the_gradient_is_that_of_cross_entropy_times_a_factor(attempts):
    logits, target = 3 * torch.randn(8, 3, dtype=torch.float64, requires_grad=True), torch.arange(8) % 3
    ce = F.cross_entropy(logits, target, reduction="none")
    p = (-ce).exp().detach()
    factor = attempts * p * (1 - p) ** (attempts - 1) / (1 - (1 - p) ** attempts)
    plain = torch.autograd.grad(ce.sum(), logits, retain_graph=True)[0]
    ours = torch.autograd.grad(pass_at_n_loss(logits, target, attempts=attempts).sum(), logits)[0]
    torch.testing.assert_close(ours, plain * factor[:, None], rtol=1e-6, atol=1e-9)


def test_a_tiny_probability_counts_as_in_cross_entropy():
    """-log(N p) for log p = -20000, where p in float32 is 0."""
    logits = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    loss = pass_at_n_loss(logits, torch.tensor([0]), attempts=100)
    assert loss.item() == pytest.approx(2e4 - math.log(100))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0], torch.tensor([[-1.0, 1.0]]))


def test_the_two_ways_of_computing_it_meet():
    """At log p = -10 and at log p = -10 - log N."""
    for attempts in (1, 50):
        for edge in (-10.0, -10 - math.log(attempts)):
            below, above = (of(math.exp(edge + d), attempts) for d in (-1e-9, 1e-9))
            assert below - above == pytest.approx(2e-9, abs=1e-9)


@pytest.mark.parametrize("attempts", [1, 8, 10**6])
def test_a_sure_prediction_has_no_gradient_and_no_nan(attempts):
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = pass_at_n_loss(logits, torch.tensor([0]), attempts=attempts)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss.sum(), logits)[0].tolist() == [[0, 0]]


def test_what_is_refused():
    with pytest.raises(ValueError, match="attempts=0 must be >= 1"):
        PassAtNLoss(attempts=0)
