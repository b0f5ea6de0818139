import math

import pytest
import torch

from lightning_objectives.weighting import DRRho, excess_loss_weights


def test_by_hand():
    """Excesses 0, log 3, and -log 2 at temperature 1: shares 1, 3 and 1/2 of 4.5, times 3."""
    losses = torch.tensor([1.0, 1.0 + math.log(3), 2.0])
    weights = excess_loss_weights(losses, torch.tensor([1.0, 1.0, 2.0 + math.log(2)]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 3.0, 0.5]) / 1.5)


def test_they_are_the_gradient_of_the_robust_risk():
    losses = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp().requires_grad_()
    reference = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).exp()
    risk = 0.3 * ((losses - reference) / 0.3).exp().mean().log()
    (slopes,) = torch.autograd.grad(risk, losses)
    torch.testing.assert_close(excess_loss_weights(losses, reference, temperature=0.3) / 7, slopes)


def test_no_excess_and_any_temperature_are_weights_of_one():
    losses = torch.tensor([0.5, 4.0, 1.0])
    assert DRRho()(losses, losses - 1).tolist() == [1.0, 1.0, 1.0]
    assert DRRho(temperature=float("inf"))(losses, torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]


def test_what_is_not_finite_does_not_count():
    inf, nan = float("inf"), float("nan")
    weights = excess_loss_weights(torch.tensor([1.0, inf, 1.0, nan]), torch.tensor([1.0, 1.0, 1.0, 1.0]))
    assert weights.tolist() == [2.0, 0.0, 2.0, 0.0]
    assert excess_loss_weights(torch.tensor([inf, nan]), torch.ones(2)).tolist() == [1.0, 1.0]


def test_refusals():
    with pytest.raises(ValueError, match=r"temperature=0.0 must be > 0"):
        DRRho(temperature=0.0)
    with pytest.raises(ValueError, match=r"temperature=nan must be > 0"):
        excess_loss_weights(torch.ones(2), torch.ones(2), temperature=float("nan"))
