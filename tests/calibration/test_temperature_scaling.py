import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.calibration import TemperatureScaling, best_temperature


def sample(scale=3.0, n=400, classes=5):
    logits = torch.randn(n, classes) * 2
    return scale * logits, torch.multinomial(logits.softmax(1), 1).squeeze(1)


def test_by_hand():
    """Gap 2 and 3 of 4 right: sigmoid(2 / T) = 3/4, T = 2 / log 3 = 1.8204785."""
    logits = torch.tensor([[2.0, 0.0]]).expand(4, 2)
    assert best_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), rel=1e-9)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 20.0])
def test_equals_lbfgs_and_a_grid(scale):
    logits, target = sample(scale)
    found = best_temperature(logits, target)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.double() / log_t.exp(), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert found == pytest.approx(log_t.exp().item(), rel=1e-4)
    grid = [found * (1 + k / 100) for k in range(-20, 21)]
    assert min(grid, key=lambda t: F.cross_entropy(logits.double() / t, target).item()) == found


def test_a_soft_target_is_the_same_as_repeated_samples():
    logits = torch.randn(6, 3)
    soft = torch.tensor([[0.25, 0.75, 0.0]]).expand(6, 3)
    repeated = best_temperature(logits.repeat_interleave(4, 0), torch.tensor([0, 1, 1, 1]).repeat(6))
    assert best_temperature(logits, soft) == pytest.approx(repeated, rel=1e-6)


def test_where_there_is_no_best_temperature_it_is_a_bound():
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert best_temperature(logits, torch.tensor([0, 1])) == 0.01
    assert best_temperature(logits, torch.tensor([1, 0]), max_temperature=7.0) == 7.0
    assert best_temperature(torch.zeros(3, 2), torch.tensor([0, 1, 1])) == 100.0


def test_it_mends_what_was_scaled_by_three():
    logits, target = sample(3.0, n=20000)
    scaling = TemperatureScaling()
    assert torch.equal(scaling(logits), logits.softmax(1)), "before the fit it changes nothing"
    scaling.fit(logits, target)
    assert scaling.temperature.item() == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize(
    ("logits", "message"),
    [(torch.zeros(0, 3), "no samples"), (torch.tensor([[0.0, math.nan, 1.0]]), "1 of 1 samples have logits")],
)
def test_what_cannot_be_fitted_is_refused(logits, message):
    with pytest.raises(ValueError, match=message):
        TemperatureScaling().fit(logits, torch.zeros(len(logits), dtype=torch.long))


def test_bounds_without_one_are_refused():
    with pytest.raises(ValueError, match=r"min_temperature=2\.0 and max_temperature=100\.0 must"):
        TemperatureScaling(min_temperature=2.0)
