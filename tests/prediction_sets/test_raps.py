"""Regularized adaptive prediction sets against numbers worked by hand, a slow loop, and APS."""

import math

import pytest
import torch

from lightning_objectives.prediction_sets import APS, RAPS, aps_scores, raps_scores


def test_by_hand():
    """Order b, a, c, d; u = 0.25, two free: 0.125 b; 0.5 + 0.075 a; 0.8 + 0.0375 + 0.1 c; 0.95 + 0.0125 + 0.2 d."""
    p = torch.tensor([[0.3, 0.5, 0.15, 0.05]])
    scores = raps_scores(p, torch.tensor([0.25]), penalty=0.1, free_classes=2)
    torch.testing.assert_close(scores, torch.tensor([[0.575, 0.125, 0.9375, 1.1625]]))


@pytest.mark.parametrize("free_classes", [0, 1, 3, 9])
def test_a_slow_loop_gives_the_same_scores(free_classes):
    p = torch.rand(6, 5, dtype=torch.float64)
    p[:, 3] = p[:, 1]  # a tie: the lower index comes first
    u = torch.rand(6, dtype=torch.float64)
    expected = torch.empty_like(p)
    for n, row in enumerate(p.tolist()):
        for c, own in enumerate(row):
            before = [q for k, q in enumerate(row) if q > own or (q == own and k < c)]
            rank = len(before) + 1
            expected[n, c] = sum(before) + float(u[n]) * own + 0.07 * max(0, rank - free_classes)
    torch.testing.assert_close(raps_scores(p, u, penalty=0.07, free_classes=free_classes), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_penalty_the_scores_are_those_of_aps_to_the_bit(dtype):
    p, u = torch.randn(50, 7, dtype=dtype).softmax(1), torch.rand(50, dtype=dtype)
    assert torch.equal(raps_scores(p, u, penalty=0.0, free_classes=1), aps_scores(p, u))


@pytest.mark.parametrize("settings", [{}, {"randomized": False}, {"allow_empty": False}])
def test_without_a_penalty_the_sets_are_those_of_aps_to_the_bit(settings):
    logits, target = torch.randn(40, 7), torch.arange(40) % 7
    ours, aps = RAPS(penalty=0.0, free_classes=1, **settings), APS(**settings)
    sets = []
    for predictor in (ours, aps):
        generator = torch.Generator().manual_seed(1)
        predictor.fit(logits, target, generator)
        sets.append(predictor(logits, generator))
    assert torch.equal(ours.threshold, aps.threshold)
    assert torch.equal(*sets)


def test_a_great_penalty_gives_sets_of_nearly_one_size():
    """All scores of rank r then lie in [100 r - 100, 100 r - 99]: a threshold in one of these bands cuts one rank."""
    logits, target = torch.randn(500, 10), torch.randint(10, (500,))
    predictor = RAPS(penalty=100.0, free_classes=1)
    predictor.fit(logits, target)
    sizes = predictor(logits).sum(1)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("penalty", [-0.5, math.inf, math.nan])
def test_a_penalty_that_is_no_cost_is_refused(penalty):
    with pytest.raises(ValueError, match=rf"penalty={penalty} must be a number >= 0; 0 is APS"):
        RAPS(penalty=penalty)


@pytest.mark.parametrize("free_classes", [-1, 1.5, math.inf])
def test_free_classes_that_cannot_be_counted_are_refused(free_classes):
    with pytest.raises(ValueError, match=rf"free_classes={free_classes} must be a whole number >= 0"):
        RAPS(free_classes=free_classes)


def test_what_aps_refuses_is_refused():
    with pytest.raises(ValueError, match=r"alpha=1\.0 must be in \(0, 1\)"):
        RAPS(alpha=1.0)
    with pytest.raises(ValueError, match="holds probabilities"):
        RAPS().fit(torch.zeros(4, 3), torch.full((4, 3), 1 / 3))
