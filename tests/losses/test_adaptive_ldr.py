import math

import pytest
import torch

from lightning_objectives.losses import (
    AdaptiveLDRLoss,
    adaptive_ldr_loss,
    adaptive_temperatures,
    ldr_loss,
    score_gaps,
)


def objective(gaps, temperatures, lambda_0, alpha):
    """What is maximised, for one sample and many temperatures, in plain Python."""
    classes = len(gaps)
    values = []
    for t in temperatures:
        mean = sum(math.exp(d / t) for d in gaps) / classes
        values.append(t * math.log(mean) - alpha * math.log(classes) / (2 * lambda_0) * (t - lambda_0) ** 2)
    return values


@pytest.mark.parametrize(("lambda_0", "alpha"), [(1.0, 2.0), (2.0, 5.0)])
def test_equals_a_search_over_a_grid(lambda_0, alpha):
    logits, target = 2 * torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    losses = adaptive_ldr_loss(logits, target, temperature=lambda_0, alpha=alpha, margin=0.1)
    grid = [lambda_0 * (1 - 1 / alpha + k / alpha / 4000) for k in range(4001)]
    expected = [max(objective(row, grid, lambda_0, alpha)) for row in score_gaps(logits, target, margin=0.1).tolist()]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_sample_of_which_the_network_says_nothing_keeps_the_temperature():
    assert adaptive_temperatures(torch.zeros(1, 5), temperature=3.0).item() == pytest.approx(3.0)


def test_a_sample_of_which_it_is_sure_gets_the_least():
    """All mass on one class: KL = log C, so that lambda = 1 - 1 / 4 and, the greatest gap being 0, the loss is
    -0.75 log 5 - (4 log 5 / 2) / 16 = -0.875 log 5 = -1.4082581."""
    gaps = torch.tensor([[0.0, -200.0, -200.0, -200.0, -200.0]])
    assert adaptive_temperatures(gaps, alpha=4.0).item() == pytest.approx(0.75)
    loss = adaptive_ldr_loss(gaps, torch.tensor([0]), alpha=4.0)
    torch.testing.assert_close(loss, torch.tensor([-1.4082581]))


def test_without_freedom_it_is_the_ldr_loss():
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    expected = ldr_loss(logits, target, temperature=0.7, margin=0.2)
    for alpha in (math.inf, 1e7):
        losses = adaptive_ldr_loss(logits, target, temperature=0.7, margin=0.2, alpha=alpha)
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.0}, r"alpha=1\.0 must be > 1"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be > 0"),
        ({"margin": -1.0}, r"margin=-1\.0 must be >= 0"),
        ({"iterations": 0}, "iterations=0 must be >= 1"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveLDRLoss(**settings)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="have one class"):
        AdaptiveLDRLoss()(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
