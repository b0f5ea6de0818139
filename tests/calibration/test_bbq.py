import math

import numpy as np
import pytest
import torch
from scipy.special import betaln
from torch_uncertainty.post_processing import BBQScaler

from lightning_objectives.calibration import BBQ, averaged_quantile_bins

P = torch.tensor([0.05, 0.1, 0.15, 0.2, 0.3, 0.35, 0.4, 0.55, 0.6, 0.7, 0.8, 0.9], dtype=torch.float64)
Y = torch.tensor([0.0, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1])


def fitted(logits, target, **settings):
    method = BBQ(**settings)
    method.fit(logits, target)
    return method


def sample(n=300, classes=3):
    logits = 2 * torch.randn(n, classes, dtype=torch.float64)
    return logits, torch.multinomial((0.5 * logits).softmax(1), 1).squeeze(1)


def at(places, edges, rates):
    return rates[torch.searchsorted(edges, torch.tensor(places, dtype=edges.dtype))]


def slow(p, y, counts, prior):
    """Log-scores and rates of the models, sample by sample: the score is a product of ratios of beta functions."""
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    scores, tables = [], []
    for b in counts:
        ends = sorted({max(np.flatnonzero(p == p[len(p) * (i + 1) // b - 1])) for i in range(b)})
        edges = np.r_[0, [(p[e] + p[e + 1]) / 2 for e in ends[:-1]], 1]
        starts, bins = np.r_[0, np.array(ends[:-1], int) + 1], len(ends)
        score, table = 0.0, np.zeros(len(p))
        for k, (start, end) in enumerate(zip(starts, ends)):
            hits, misses = y[start : end + 1].sum(), (1 - y[start : end + 1]).sum()
            pi = (edges[k] + edges[k + 1]) / 2
            a, c = prior / bins * pi, prior / bins * (1 - pi)
            score += betaln(hits + a, misses + c) - betaln(a, c)
            table[start : end + 1] = hits / (hits + misses)
        scores.append(score)
        tables.append(table)
    weights = np.exp(scores - np.max(scores))
    return p, weights / weights.sum() @ np.array(tables), weights / weights.sum()


def test_the_numbers_of_another_program():
    """Log-scores of 2, 3 and 4 bins of 6, 4 and 3 samples, and the averages at .1, .37 and .75."""
    edges, rates, weights = averaged_quantile_bins(P, Y, min_bins=2, max_bins=4)
    scores = torch.tensor([-7.677972, -11.676989, -6.918767], dtype=torch.float64)
    torch.testing.assert_close(weights, scores.softmax(0), atol=1e-6, rtol=0)
    expected = torch.tensor([0.054280, 0.281474, 0.945720]).double()
    torch.testing.assert_close(at([0.1, 0.37, 0.75], edges, rates), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("prior", [0.5, 2.0, 20.0])
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_slow_loop_with_and_without_ties(seed, prior):
    draw = np.random.default_rng(seed)
    n = 37
    p = draw.integers(1, 9, n) / 9 if seed % 2 else draw.random(n)
    y = (draw.random(n) < p**2).astype(float)
    most = min(12, len(np.unique(p)))
    ordered, expected, weights = slow(p, y, range(1, most + 1), prior)
    edges, rates, ours = averaged_quantile_bins(torch.tensor(p), torch.tensor(y), min_bins=1, max_bins=12, prior=prior)
    np.testing.assert_allclose(ours, weights, atol=1e-12)
    np.testing.assert_allclose(at(ordered, edges, rates), expected, atol=1e-12)
    assert (edges.diff() > 0).all()


def test_equals_torch_uncertainty_where_its_edges_are_ours():
    """It interpolates quantiles of the inputs for edges: with two bins of an even number of them, midway too."""
    theirs = BBQScaler(max_bins=2, model_pruning=None)
    logits = torch.stack([torch.zeros(12).double(), P.logit()], 1)
    theirs.fit([(logits.float(), Y.long())], progress=False)
    ours = fitted(logits, Y.long(), min_bins=2, max_bins=2)(logits)
    torch.testing.assert_close(ours, theirs(logits.float()).exp().double(), atol=3e-6, rtol=0)


def test_of_many_samples_the_simple_model_wins_if_it_is_true():
    """A rate that does not depend on the input."""
    p, y = torch.rand(4000).double(), (torch.rand(4000) < 0.3).double()
    weights = averaged_quantile_bins(p, y, min_bins=1, max_bins=10)[2]
    assert weights.argmax() == 0


def test_the_default_numbers_of_bins():
    """N = 1000: from 1 to 100; N = 8: from 1 to 8, not 20."""
    for n, models in ((1000, 100), (8, 8)):
        p = torch.rand(n).double()
        assert len(averaged_quantile_bins(p, (p > 0.5).double())[2]) == models
    big = torch.rand(27001).double()
    assert len(averaged_quantile_bins(big, big)[2]) == 301 - 3 + 1


def test_equal_inputs_have_one_rate():
    edges, rates, weights = averaged_quantile_bins(torch.full((5,), 0.4), torch.tensor([1.0, 0, 0, 0, 1]))
    assert (len(edges), rates.tolist(), weights.tolist()) == (0, [0.4], [1.0])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_inputs_of_exactly_0_or_1_are_finite(value):
    p = torch.tensor([value, value, 0.5, 0.6])
    edges, rates, weights = averaged_quantile_bins(p, torch.tensor([0.0, 1, 0, 1]))
    assert all(part.isfinite().all() for part in (edges, rates, weights))


def test_one_function_for_each_class_then_the_sum():
    logits, target = sample()
    p = logits.softmax(1)
    expected = torch.stack(
        [at(p[:, c].tolist(), *averaged_quantile_bins(p[:, c], (target == c).double())[:2]) for c in range(3)], 1
    )
    torch.testing.assert_close(fitted(logits, target)(logits), expected / expected.sum(1, keepdim=True))


def test_a_row_of_rates_of_0_is_uniform():
    logits, target = sample()
    method = fitted(logits, target)
    method.rates.zero_()
    torch.testing.assert_close(method(logits), torch.full_like(logits, 1 / 3))


def test_a_soft_target_counts_as_its_share():
    _, rates, _ = averaged_quantile_bins(P, torch.full((12,), 0.25))
    torch.testing.assert_close(rates.unique(), torch.tensor([0.25]).double()[: len(rates.unique())])


def test_before_the_fit_it_is_softmax():
    logits = sample()[0]
    assert torch.equal(BBQ()(logits), logits.softmax(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_bins": 0}, "min_bins=0 must be 1 or more"),
        ({"max_bins": 0}, "max_bins=0 no less"),
        ({"min_bins": 5, "max_bins": 3}, "max_bins=3 no less"),
        ({"prior": 0.0}, r"prior=0\.0 must be positive and finite"),
        ({"prior": math.inf}, "prior=inf must be positive and finite"),
    ],
)
def test_settings_outside_of_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BBQ(**settings)
    with pytest.raises(ValueError, match=message):
        averaged_quantile_bins(P, Y, **settings)


@pytest.mark.parametrize(
    ("logits", "message"),
    [(torch.zeros(0, 3), "no samples"), (torch.tensor([[0.0, math.nan, 1.0]]), "1 of 1 samples have logits")],
)
def test_what_cannot_be_fitted_is_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        fitted(logits, torch.zeros(len(logits), dtype=torch.long))
