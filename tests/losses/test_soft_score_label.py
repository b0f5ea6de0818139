import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import SoftScoreLabelLoss, soft_score_label_loss, soft_score_labels
from lightning_objectives.testing import assert_laws

DENSITIES = ["pdf", "cdf"]


def fitted(mean, std, levels, density):
    """The two conditions as a linear system, solved by numpy; then cut off at 0, and divided by the sum."""
    normal = NormalDist(mean, std)
    phi = [normal.pdf(k) if density == "pdf" else normal.cdf(k + 0.5) - normal.cdf(k - 0.5) for k in range(levels)]
    moments = [[sum(phi), levels], [sum(k * v for k, v in enumerate(phi)), levels * (levels - 1) / 2]]
    alpha, beta = np.linalg.solve(moments, [1.0, mean])
    label = np.clip(alpha * np.array(phi) + beta, 0, None)
    return torch.from_numpy(label / label.sum())


def labels(mean, std, levels=5, density="pdf"):
    mean, std = (torch.tensor([v], dtype=torch.float64) for v in (mean, std))
    return soft_score_labels(mean, std, levels=levels, density=density)[0]


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(("mean", "std"), [(1.3, 0.6), (2.4, 0.5), (2.9, 0.8), (1.0, 0.7), (2.1, 1.0)])
def test_labels_solve_the_two_conditions(mean, std, density):
    label = labels(mean, std, density=density)
    torch.testing.assert_close(label, fitted(mean, std, 5, density))
    assert (label @ torch.arange(5.0).double()).item() == pytest.approx(mean, abs=0.05)


def test_by_hand():
    """Three levels, spread 1/2, at the middle: alpha = e² / 8 = 0.92363 and beta = (1 - 0.92363 · 1.27067) / 3 =
    -0.05788, so the ends have 0.125 - 0.05788 and the middle 0.92363 - 0.05788."""
    expected = torch.tensor([0.06712, 0.86575, 0.06712]).double()
    torch.testing.assert_close(labels(1.0, 0.5, levels=3), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("std", [0.3, 0.7, 1.5])
def test_the_label_at_the_middle_is_that_beside_it(std, levels, density):
    """Where the authors' code gives a uniform label."""
    middle = (levels - 1) / 2
    label = labels(middle, std, levels, density)
    for beside in (middle + 1e-3, middle - 1e-3):
        torch.testing.assert_close(label, labels(beside, std, levels, density), rtol=0, atol=2e-3)
    assert label.amax() > 1.2 / levels
    single = soft_score_labels(torch.tensor([middle]), torch.tensor([std]), levels=levels, density=density)
    torch.testing.assert_close(single[0], label.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("density", DENSITIES)
def test_every_label_is_a_distribution_with_about_the_mean_of_its_score(density):
    mean, std = (v.flatten() for v in torch.meshgrid(torch.linspace(0, 4, 81), torch.linspace(0, 3, 31), indexing="ij"))
    label = soft_score_labels(mean, std, levels=5, density=density)
    assert (label >= 0).all()
    torch.testing.assert_close(label.sum(1), torch.ones(len(mean)))
    assert ((label * torch.arange(5.0)).sum(1) - mean).abs().amax() < 0.101


def test_narrow_scores_are_divided_between_two_levels():
    expected = torch.tensor([0.0, 0.9, 0.1, 0.0, 0.0]).double()
    for std in (0.0, 0.19):
        torch.testing.assert_close(labels(1.1, std), expected)
    assert labels(1.1, 0.21)[0] > 0.01
    torch.testing.assert_close(labels(4.0, 1.0), F.one_hot(torch.tensor(4), 5).double())  # Else 0.1 levels off.


@pytest.mark.parametrize("density", DENSITIES)
def test_the_loss_is_the_divergence_from_the_label(density):
    logits, target = torch.randn(6, 5).double(), torch.arange(6) % 5
    label = soft_score_labels(target.double(), torch.full((6,), 0.7).double(), levels=5, density=density)
    loss = soft_score_label_loss(logits, target, least_std=0.7, density=density)
    expected = F.kl_div(logits.log_softmax(1), label, reduction="none").sum(1)
    torch.testing.assert_close(loss, expected)


def test_ratings_have_their_own_mean_and_spread():
    """Ratings 1, 2, 2, 4 of 0 to 4: mean 2.25 and variance 1.1875."""
    shares = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25]]).double()
    logits = torch.randn(1, 5).double()
    label = labels(2.25, math.sqrt(1.1875))[None]
    for least_std in (0.0, 1.0):
        loss = soft_score_label_loss(logits, shares, least_std=least_std)
        torch.testing.assert_close(loss, F.kl_div(logits.log_softmax(1), label, reduction="batchmean")[None])
    assert soft_score_label_loss(logits, shares, least_std=1.2).item() != pytest.approx(loss.item())


def test_a_score_between_two_levels_has_the_least_spread():
    logits, shares = torch.randn(1, 5).double(), torch.tensor([[0.0, 0.0, 0.6, 0.4, 0.0]]).double()
    label = labels(2.4, 0.8)[None]
    expected = F.kl_div(logits.log_softmax(1), label, reduction="batchmean")[None]
    torch.testing.assert_close(soft_score_label_loss(logits, shares, least_std=0.8), expected)


def test_without_a_spread_it_is_cross_entropy():
    logits, target = torch.randn(6, 4), torch.arange(6) % 4
    torch.testing.assert_close(soft_score_label_loss(logits, target), F.cross_entropy(logits, target, reduction="none"))


def test_it_is_least_at_the_label():
    label = labels(1.0, 0.6)[None]
    logits = label.log().requires_grad_()
    loss = soft_score_label_loss(logits, torch.tensor([1]), least_std=0.6)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.zeros(1).double())
    torch.testing.assert_close(logits.grad, torch.zeros(1, 5).double())


def test_the_other_density_keeps_the_laws():
    assert_laws(SoftScoreLabelLoss(least_std=0.7, density="cdf"))


def test_refusals():
    for least_std in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="must be >= 0 and finite"):
            SoftScoreLabelLoss(least_std=least_std)
    with pytest.raises(ValueError, match="density='gauss' must be 'pdf' or 'cdf'"):
        SoftScoreLabelLoss(density="gauss")
    one = torch.ones(1)
    for score in (-0.1, 4.1, math.nan):
        with pytest.raises(ValueError, match="must lie between 0 and 4, in units of the 5 levels"):
            soft_score_labels(torch.tensor([1.0, score]), torch.ones(2), levels=5)
    with pytest.raises(ValueError, match=r"deviation of -1 must be >= 0"):
        soft_score_labels(one, -one, levels=5)
    with pytest.raises(ValueError, match="levels=1 must be 2 or more"):
        soft_score_labels(one, one, levels=1)
    with pytest.raises(ValueError, match=r"std of the shape \(2,\)"):
        soft_score_labels(one, torch.ones(2), levels=5)
