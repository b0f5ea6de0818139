import math

import pytest
import torch

from lightning_objectives.combination import GradNorm

G, ONES = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.ones(2)


def moved(method, gradients=G, terms=ONES):
    method(gradients, terms)
    return method.weights


def test_by_hand():
    """Lengths 5 and 1, mean 3, paces 0.5 / 0.65 and 0.8 / 0.65: targets 2.023980 and 4.096248, slopes 5 and -1."""
    method = GradNorm(tasks=2, alpha=1.5, step_size=0.025, initial_losses=[1.0, 1.0])
    weights = moved(method, terms=torch.tensor([0.5, 0.8]))
    torch.testing.assert_close(weights, torch.tensor([0.921053, 1.078947]), rtol=1e-5, atol=0)


def test_the_slope_is_that_of_its_objective():
    """With the targets as constants, by autograd."""
    generator = torch.Generator().manual_seed(0)
    method = GradNorm(tasks=3, alpha=0.7, step_size=0.01)
    for _ in range(4):
        gradients, terms = torch.randn(3, 5, generator=generator), torch.rand(3, generator=generator) + 0.5
        before = method.weights.clone().requires_grad_()
        first = terms if method.first_losses.isnan().any() else method.first_losses
        lengths = gradients.norm(dim=1) * before
        ratios = terms / first
        targets = (lengths.mean() * (ratios / ratios.mean()) ** 0.7).detach()
        (lengths - targets).abs().sum().backward()
        expected = before.detach() - 0.01 * before.grad
        torch.testing.assert_close(moved(method, gradients, terms), expected * 3 / expected.sum())


def test_a_step_uses_the_weights_from_before_it():
    method = GradNorm(tasks=2)
    first = method(G, ONES)
    assert first.tolist() == [1.0, 1.0]
    second = method(G, ONES)
    assert second[0] < 1 < second[1]
    assert second.sum().item() == pytest.approx(2)


def test_the_losses_of_the_first_step_are_kept():
    method = GradNorm(tasks=2)
    method(G, torch.tensor([3.0, 0.5]))
    method(G, torch.tensor([1.0, 1.0]))
    assert method.first_losses.tolist() == [3.0, 0.5]


def test_in_the_end_gradients_are_equally_long():
    method = GradNorm(tasks=2, alpha=0.0, step_size=1e-3)
    for _ in range(1500):
        method(G, ONES)
    lengths = method.weights * torch.tensor([5.0, 1.0])
    assert lengths[0].item() == pytest.approx(lengths[1].item(), abs=0.05)


def test_a_slow_task_gets_more_weight():
    method = GradNorm(tasks=2, initial_losses=[1.0, 1.0])
    weights = moved(method, torch.tensor([[1.0], [1.0]]), torch.tensor([0.1, 0.9]))
    assert weights[0] < 1 < weights[1]


def test_weights_stay_positive_or_zero():
    method = GradNorm(tasks=2, step_size=10.0)
    for _ in range(5):
        weights = moved(method)
        assert (weights >= 0).all()
        assert weights.sum().item() == pytest.approx(2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_moves_nothing(bad):
    method = GradNorm(tasks=2)
    method(G, torch.tensor([bad, 1.0]))
    assert method.first_losses.isnan().all()
    method(torch.tensor([[bad], [1.0]]), ONES)
    assert method.weights.tolist() == [1.0, 1.0]
    assert method.first_losses.isnan().all()


def test_a_first_loss_of_zero_and_gradients_of_zero():
    method = GradNorm(tasks=2)
    for _ in range(3):
        assert moved(method, terms=torch.tensor([0.0, 1.0])).isfinite().all()
    assert moved(GradNorm(tasks=2), torch.zeros(2, 3), torch.zeros(2)).tolist() == [1.0, 1.0]


def test_refusals():
    with pytest.raises(ValueError, match="tasks=0 must be at least 1"):
        GradNorm(tasks=0)
    with pytest.raises(ValueError, match=r"alpha=-1\.0 must be >= 0"):
        GradNorm(tasks=2, alpha=-1.0)
    with pytest.raises(ValueError, match=r"initial_losses=\[1\.0\] must be a number > 0 for each of the 2 tasks"):
        GradNorm(tasks=2, initial_losses=[1.0])
    with pytest.raises(ValueError, match=r"The loss has 2 terms, but tasks=3\. Set tasks=2"):
        GradNorm(tasks=3)(G, ONES)
