import math

import pytest
import torch

from lightning_objectives.weighting import DoublyRobustReweighting, excess_loss_weights


def test_by_hand():
    """Exponentials 1, 3 with the mean 2; then 4, 8 with the mean 6, which moves u from 2 by a quarter of 4 to 3."""
    method = DoublyRobustReweighting(rate=0.25)
    torch.testing.assert_close(method(torch.tensor([1.0, 3.0]).log()), torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(method(torch.tensor([4.0, 8.0]).log()), torch.tensor([4 / 3, 8 / 3]))
    torch.testing.assert_close(method.log_mean, torch.tensor(math.log(3.0)))


def test_a_slow_loop_in_plain_numbers():
    generator = torch.Generator().manual_seed(0)
    method, u = DoublyRobustReweighting(temperature=0.7, rate=0.3).double(), None
    for _ in range(5):
        losses = torch.rand(6, generator=generator, dtype=torch.float64) * 3
        exponentials = [math.exp(loss / 0.7) for loss in losses.tolist()]
        mean = sum(exponentials) / 6
        u = mean if u is None else 0.7 * u + 0.3 * mean
        torch.testing.assert_close(method(losses), torch.tensor([e / u for e in exponentials], dtype=torch.float64))


def test_of_one_batch_they_are_the_gradient_of_the_robust_objective():
    losses = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slopes,) = torch.autograd.grad(0.3 * (losses / 0.3).exp().mean().log(), losses)
    torch.testing.assert_close(DoublyRobustReweighting(temperature=0.3).double()(losses) / 7, slopes)


def test_the_objective_is_that_of_the_worst_mixture():
    """No other mixture p has a greater sum of p times losses minus lambda KL(p || 1 / n), and it is the value."""
    generator, lam = torch.Generator().manual_seed(0), 0.5
    losses = torch.rand(4, dtype=torch.float64, generator=generator)

    def objective(p):
        return (p * losses).sum() - lam * (p * (4 * p).log()).sum()

    best = DoublyRobustReweighting(temperature=lam, rate=1.0).double()(losses) / 4
    torch.testing.assert_close(objective(best), lam * (losses / lam).exp().mean().log())
    others = torch.rand(500, 4, dtype=torch.float64, generator=generator)
    assert all(objective(p / p.sum()) < objective(best) for p in others)


def test_rate_one_is_the_softmax_of_each_batch():
    method, generator = DoublyRobustReweighting(temperature=0.5, rate=1.0), torch.Generator().manual_seed(0)
    for _ in range(3):
        losses = torch.rand(5, generator=generator)
        expected = excess_loss_weights(losses, torch.zeros(5), temperature=0.5)
        torch.testing.assert_close(method(losses), expected)


def test_infinite_temperature_is_the_plain_training():
    assert DoublyRobustReweighting(temperature=math.inf)(torch.tensor([0.1, 9.0])).tolist() == [1.0, 1.0]


def test_no_weight_is_above_the_batch_size_over_the_rate_whatever_the_jump():
    method = DoublyRobustReweighting(rate=0.1)
    method(torch.zeros(4))
    weights = method(torch.tensor([0.0, 0.0, 0.0, 1e4]))
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 0.0, 40.0]), rtol=0.01, atol=0)  # 1e4 in float32
    assert method.log_mean.isfinite()


def test_what_is_not_finite_does_not_count():
    inf, nan = math.inf, math.nan
    method = DoublyRobustReweighting(rate=0.5)
    torch.testing.assert_close(method(torch.tensor([0.0, nan, 0.0, inf, -inf])), torch.tensor([1.0, 0, 1, 0, 0]))
    assert method(torch.tensor([nan, inf])).tolist() == [1.0, 1.0]
    assert method.log_mean == 0
    assert method(torch.zeros(0)).tolist() == []


def test_the_running_mean_is_in_the_state():
    method, other = DoublyRobustReweighting(rate=0.5), DoublyRobustReweighting(rate=0.5)
    method(torch.tensor([1.0, 2.0]))
    other.load_state_dict(method.state_dict())
    assert torch.equal(method(torch.tensor([3.0, 0.0])), other(torch.tensor([3.0, 0.0])))


def test_refusals():
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be > 0"):
        DoublyRobustReweighting(temperature=0.0)
    with pytest.raises(ValueError, match=r"rate=0\.0 must be in \(0, 1\]"):
        DoublyRobustReweighting(rate=0.0)
    with pytest.raises(ValueError, match=r"rate=nan must be in \(0, 1\]"):
        DoublyRobustReweighting(rate=math.nan)
