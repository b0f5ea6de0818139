import math
from statistics import NormalDist

import pytest
import torch

from lightning_objectives.prediction_sets import APS, aps_scores, conformal_quantile
from lightning_objectives.testing import assert_laws

P = torch.tensor(
    [[.7, .2, .1], [.5, .3, .2], [.6, .3, .1], [.4, .35, .25], [.8, .15, .05], [.3, .45, .25], [.2, .2, .6],
     [.1, .8, .1], [.55, .25, .2]], dtype=torch.float64
)  # fmt: skip
Y = torch.tensor([0, 1, 0, 2, 0, 1, 2, 1, 2])
U = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.6, 0.4, 0.8], dtype=torch.float64)


def in_set(p, label, u, tau):
    """The paper's S(x, U; pi, tau), equations 3 to 5, with U = 1 - u."""
    order = sorted(range(len(p)), key=lambda c: -p[c])
    total, size = 0.0, 0
    while size < len(p) and total < tau:
        total += p[order[size]]
        size += 1
    if size and (1 - u) <= (total - tau) / p[order[size - 1]]:
        size -= 1
    return label in order[:size]


def test_scores_are_the_least_tau_of_the_papers_sets():
    draw = torch.Generator().manual_seed(0)
    p, u = torch.rand(20, 4, generator=draw).softmax(1).double(), torch.rand(20, generator=draw).double()
    scores = aps_scores(p, u)
    for row in range(20):
        for label in range(4):
            score = scores[row, label].item()
            assert in_set(p[row].tolist(), label, u[row].item(), min(score + 1e-9, 1.0))
            assert not in_set(p[row].tolist(), label, u[row].item(), score - 1e-9)


def test_by_hand():
    """Row 1 has the target in the second place: .5 + .1 * .3 = .53. The 8th of 9 is row 3, .4 + .35 + .3 * .25."""
    own = aps_scores(P, U).gather(1, Y[:, None]).squeeze(1)
    expected = [0.35, 0.53, 0.54, 0.825, 0.56, 0.09, 0.36, 0.32, 0.96]
    torch.testing.assert_close(own, torch.tensor(expected, dtype=torch.float64))
    assert conformal_quantile(own, alpha=0.2).item() == pytest.approx(0.825)
    assert aps_scores(P[2:3], torch.tensor([0.4])).flatten().tolist() == pytest.approx([0.24, 0.72, 0.94])
    assert conformal_quantile(aps_scores(P, torch.ones(9)).gather(1, Y[:, None])[:, 0], alpha=0.2).item() == 1.0


@pytest.mark.parametrize(
    ("count", "alpha", "rank"),
    [(20, 0.1, 19), (9, 0.1, 9), (8, 0.1, math.inf), (9, 0.7, 3), (99, 0.05, 95), (1, 0.5, 1), (0, 0.9, math.inf)],
)
def test_the_quantile_is_an_order_statistic(count, alpha, rank):
    """In floats (9 + 1)(1 - .7) is greater than 3, which would give the 4th."""
    scores = torch.randperm(count).double() + 1
    assert conformal_quantile(scores, alpha=alpha).item() == rank


def test_sets_of_a_fit():
    method = APS(alpha=0.2)
    method.threshold.fill_(0.825)
    u = torch.rand(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sets = method(P.log(), torch.Generator().manual_seed(3))
    assert torch.equal(sets, aps_scores(P, u) <= 0.825)


@pytest.mark.parametrize("randomized", [True, False])
def test_without_empty_sets_only_top_classes_are_added(randomized):
    logits = 3 * torch.randn(500, 4)
    method = APS(alpha=0.5, randomized=randomized, allow_empty=False)
    method.fit(logits, logits.argmax(1), torch.Generator().manual_seed(0))
    sets = method(logits, torch.Generator().manual_seed(1))
    method.allow_empty = True
    fewer = method(logits, torch.Generator().manual_seed(1))
    assert (sets.sum(1) > 0).all()
    assert (fewer.sum(1) == 0).any() == randomized
    assert torch.equal(sets, fewer | (logits == logits.amax(1, keepdim=True)))


@pytest.mark.parametrize("alpha", [0.1, 0.3])
@pytest.mark.parametrize("rows", [19, 50])
def test_the_coverage_of_new_rows_is_exact(alpha, rows):
    """Over fits and rows together it is k / (n + 1). Bounds of 4 standard deviations, of the mean over the fits."""
    draw, fits, new = torch.Generator().manual_seed(0), 400, 200
    covered = []
    for _ in range(fits):
        logits = torch.randn(rows + new, 5, generator=draw, dtype=torch.float64)
        target = torch.multinomial((2 * logits).softmax(1), 1, generator=draw).squeeze(1)  # not what the network says
        method = APS(alpha=alpha)
        method.fit(logits[:rows], target[:rows], draw)
        covered.append(method(logits[rows:], draw).gather(1, target[rows:, None]).double().mean())
    k = math.ceil(round((rows + 1) * (1 - alpha), 9))
    mean = k / (rows + 1)
    variance = mean * (1 - mean) / new + k * (rows + 1 - k) / ((rows + 1) ** 2 * (rows + 2))  # binomial and beta
    bound = NormalDist().inv_cdf(1 - 3e-5) * math.sqrt(variance / fits)
    assert torch.stack(covered).mean().item() == pytest.approx(mean, abs=bound)
    assert bound < 0.025


def test_harder_rows_get_larger_sets_and_no_draw_is_left_to_chance():
    logits = torch.cat([0.2 * torch.randn(300, 6), 6 * torch.randn(300, 6)])
    method = APS(randomized=False)
    method.fit(logits, torch.multinomial(logits.softmax(1), 1).squeeze(1))
    easy, hard = method(logits[300:]).sum(1).double().mean(), method(logits[:300]).sum(1).double().mean()
    assert easy < 3 < hard
    assert torch.equal(method(logits), method(logits))
    assert method(logits).gather(1, logits.argmax(1, keepdim=True)).all()


def test_the_laws_without_draws():
    assert_laws(APS(randomized=False, allow_empty=False))


def test_logits_that_are_not_finite_get_every_class():
    method = APS(randomized=False)
    method.threshold.fill_(0.1)
    assert method(torch.tensor([[0.0, math.nan], [3.0, 0.0]])).tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 3), r"target of the shape \(4, 3\) holds probabilities"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "1 of 1 samples have logits that are not finite"),
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.long), "two or more"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), r"logits of the shape \(4,\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), r"movedim\(1, -1\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(logits, target, message):
    with pytest.raises(ValueError, match=message):
        APS().fit(logits, target)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_an_alpha_that_is_no_share_is_refused(alpha):
    with pytest.raises(ValueError, match=rf"alpha={alpha} must be in \(0, 1\)"):
        APS(alpha=alpha)
    with pytest.raises(ValueError, match=rf"alpha={alpha} must be in \(0, 1\)"):
        conformal_quantile(torch.zeros(3), alpha=alpha)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        conformal_quantile(torch.tensor([0.0, math.nan]), alpha=0.1)
