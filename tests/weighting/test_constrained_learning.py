import pytest
import torch

from lightning_objectives.weighting import ConstrainedLearning

INF, NAN = float("inf"), float("nan")


def test_by_hand():
    """Means 1 and 4, limits 0.5 and 3: multipliers 0.1 · (0.5, 1), weights 1 + 0.05 · 5/3 and 1 + 0.1 · 5/2."""
    method = ConstrainedLearning(limits=(0.5, 3.0), step_size=0.1)
    weights = method(torch.tensor([0.5, 1.0, 1.5, 3.0, 5.0]), torch.tensor([0, 0, 0, 1, 1]))
    torch.testing.assert_close(method.multipliers, torch.tensor([0.05, 0.1]))
    torch.testing.assert_close(weights, torch.tensor([1 + 0.25 / 3] * 3 + [1.25] * 2))


def test_the_weighted_gradient_is_that_of_the_lagrangian():
    method = ConstrainedLearning(limits=(0.1, 0.2, 0.3), step_size=0.7)
    losses = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    group = torch.tensor([0, 1, 1, 2, 0, 2, 2, 2, 0])
    weights = method(losses, group)
    means = torch.stack([losses[group == g].mean() for g in range(3)])
    lagrangian = losses.mean() + (method.multipliers.double() * (means - torch.tensor([0.1, 0.2, 0.3]))).sum()
    (slopes,) = torch.autograd.grad(lagrangian, losses)
    torch.testing.assert_close(weights / 9, slopes, rtol=1e-6, atol=0)


def test_it_finds_the_constrained_minimum():
    """Losses t² and (t - 2)², of which the second may be 1/4: t = 3/2 with the multiplier 1."""
    method, t = ConstrainedLearning(limits=(INF, 0.25), step_size=0.05), 0.0
    for _ in range(2000):
        first, second = method(torch.tensor([t**2, (t - 2) ** 2]), torch.tensor([0, 1])).tolist()
        t -= 0.05 * (first * 2 * t + second * 2 * (t - 2)) / 2
    assert t == pytest.approx(1.5, abs=1e-3)
    assert method.multipliers.tolist() == pytest.approx([0.0, 1.0], abs=1e-2)


def test_within_the_limits_all_weights_are_one_and_multipliers_fall_to_zero():
    method = ConstrainedLearning(limits=(1.0, INF), step_size=1.0)
    method.multipliers = torch.tensor([0.3, 0.0])
    assert method(torch.tensor([0.1, 9.0]), torch.tensor([0, 1])).tolist() == [1.0, 1.0]
    assert method.multipliers.tolist() == [0.0, 0.0]


def test_an_absent_group_keeps_its_multiplier():
    method = ConstrainedLearning(limits=(1.0, 1.0), step_size=1.0)
    method.multipliers = torch.tensor([0.0, 0.7])
    assert method(torch.tensor([0.5, 0.5]), torch.tensor([0, 0])).tolist() == [1.0, 1.0]
    torch.testing.assert_close(method.multipliers, torch.tensor([0.0, 0.7]))


@pytest.mark.parametrize("bad", [INF, NAN])
def test_what_is_not_finite_does_not_count(bad):
    method = ConstrainedLearning(limits=(1.0, 1.0), step_size=0.5)
    weights = method(torch.tensor([3.0, bad, 1.0]), torch.tensor([0, 0, 1]))
    assert method.multipliers.tolist() == [1.0, 0.0]
    assert weights.tolist() == [3.0, 0.0, 1.0]
    alone = ConstrainedLearning(limits=(1.0,))
    assert alone(torch.tensor([bad]), torch.tensor([0])).tolist() == [0.0]
    assert alone.multipliers.tolist() == [0.0]


def test_refusals():
    for limits in ((), (1.0, NAN)):
        with pytest.raises(ValueError, match="must hold a number for each group"):
            ConstrainedLearning(limits=limits)
    with pytest.raises(ValueError, match=r"step_size=0\.0 must be > 0"):
        ConstrainedLearning(limits=(1.0,), step_size=0.0)
