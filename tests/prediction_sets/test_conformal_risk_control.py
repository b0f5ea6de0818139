import math

import pytest
import torch

from lightning_objectives.prediction_sets import ConformalRiskControl, conformal_quantile, risk_threshold
from lightning_objectives.testing import assert_laws


def slow(scores, costs, weights, alpha):
    """The largest of all thresholds that keeps the promise, tried one by one."""
    best = -math.inf
    for threshold in [*sorted(scores.tolist()), math.inf]:
        missed = sum(w * c for s, c, w in zip(scores.tolist(), costs.tolist(), weights.tolist()) if s < threshold)
        if (missed + 1) / (weights.sum().item() + 1) <= alpha + 1e-12:
            best = threshold
    return best


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_largest_threshold_that_keeps_the_promise(seed):
    generator = torch.Generator().manual_seed(seed)
    scores, costs, weights = (torch.rand(15, generator=generator, dtype=torch.float64) for _ in range(3))
    scores = (10 * scores).round() / 10  # with ties
    for alpha in (0.05, 0.2, 0.5, 0.9):
        assert risk_threshold(scores, costs, weights, alpha=alpha).item() == slow(scores, costs, weights, alpha)


def test_without_costs_and_weights_it_is_the_conformal_quantile():
    scores = torch.rand(99, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ones = torch.ones(99)
    for alpha in (0.1, 0.25, 0.5):
        assert risk_threshold(scores, ones, ones, alpha=alpha) == -conformal_quantile(-scores, alpha=alpha)


def draw(count, generator, classes=4):
    logits = 1.5 * torch.randn(count, classes, generator=generator)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits * 3, target  # overconfident


@pytest.mark.parametrize("costs", [None, (1.0, 0.2, 0.5, 0.1)])
def test_the_risk_over_repeated_splits(costs):
    """The mean of the costs over 300 fits is at most alpha, and near it, within four standard errors."""
    generator = torch.Generator().manual_seed(0)
    risks = []
    for _ in range(300):
        sets = ConformalRiskControl(alpha=0.1, costs=costs)
        sets.fit(*draw(100, generator))
        logits, target = draw(200, generator)
        missed = ~sets(logits).gather(1, target[:, None])[:, 0]
        cost = torch.ones(200) if costs is None else torch.tensor(costs)[target]
        risks.append((missed * cost).mean())
    risks = torch.stack(risks)
    error = risks.std() / 300**0.5
    assert risks.mean() <= 0.1 + 4 * error
    assert risks.mean() >= 0.1 - 1 / 101 - 4 * error


def test_new_rows_count_more_after_a_change():
    """The network is right for the old half of the rows, and wrong by chance for the new one."""
    generator = torch.Generator().manual_seed(0)
    covered = {}
    for decay in (1.0, 0.98):
        hits = []
        for _ in range(20):
            old, new = draw(300, generator), draw(300, generator)
            new = (new[0] / 6, new[1])
            sets = ConformalRiskControl(alpha=0.1, decay=decay)
            sets.fit(torch.cat([old[0] * 3, new[0]]), torch.cat([old[0].argmax(1), new[1]]))
            logits, target = draw(200, generator)
            hits.append(sets(logits / 6).gather(1, target[:, None]).float().mean())
        covered[decay] = torch.stack(hits).mean()
    assert covered[1.0] < 0.87
    assert covered[0.98] > 0.88


def test_laws_hold_with_settings():
    assert_laws(ConformalRiskControl(alpha=0.2, costs=(1.0, 1.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.0}, r"alpha=1\.0 must be in"),
        ({"costs": (2.0, 1.0)}, "divide by the largest"),
        ({"decay": 0.0}, r"decay=0\.0 must be in"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ConformalRiskControl(**settings)


def test_wrong_costs_are_refused():
    with pytest.raises(ValueError, match="for each of the 3 classes"):
        ConformalRiskControl(costs=(1.0, 0.5)).fit(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    ones = torch.ones(2)
    with pytest.raises(ValueError, match=r"weights must lie in \[0, 1\]"):
        risk_threshold(ones, ones, 2 * ones)
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        risk_threshold(torch.tensor([0.0, math.nan]), ones, ones)
