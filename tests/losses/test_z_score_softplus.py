import math
import statistics

import pytest
import torch

from lightning_objectives.losses import ZScoreSoftplusLoss, z_score_softplus_loss


def by_loop(row, target, a, b):
    z = (row[target] - statistics.fmean(row)) / statistics.pstdev(row)
    return math.log1p(math.exp(a * (b - z))) / a


def test_by_hand():
    """Logits 2, 0, 1: mean 1, deviation sqrt(2/3), z = sqrt(3/2) for class 0; log(1 + e^(2 (1 - 1.2247449))) / 2."""
    loss = z_score_softplus_loss(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0]), sharpness=2.0, margin=1.0)
    torch.testing.assert_close(loss, torch.tensor([0.246724]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.1, 10.0), (3.0, 1.5)])
def test_equals_the_loop(a, b):
    logits, target = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 5
    expected = [by_loop(row, y, a, b) for row, y in zip(logits.tolist(), target.tolist())]
    losses = z_score_softplus_loss(logits, target, sharpness=a, margin=b)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-4)


def test_shift_and_scale_change_nothing_and_the_gradient_is_orthogonal_to_both():
    logits, target = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.arange(6) % 5
    settings = {"sharpness": 1.0, "margin": 1.0}
    losses = z_score_softplus_loss(logits, target, **settings)
    torch.testing.assert_close(z_score_softplus_loss(7 * logits + 3, target, **settings), losses, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert gradient.norm() > 0.1
    torch.testing.assert_close(gradient.sum(1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-9)
    along = (gradient * (logits - logits.mean(1, keepdim=True))).sum(1)
    torch.testing.assert_close(along, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-3)


def test_the_score_is_at_most_the_root_of_all_but_one():
    """One logit that stands out of 10 equal ones has the score 3."""
    logits = torch.zeros(1, 10).index_fill(1, torch.tensor([4]), 100.0)
    loss = z_score_softplus_loss(logits, torch.tensor([4]), sharpness=1.0, margin=3.0)
    torch.testing.assert_close(loss, torch.tensor([math.log(2)]))


def test_equal_logits_have_the_score_zero_and_a_finite_gradient():
    logits = torch.full((1, 4), 2.0, requires_grad=True)
    loss = z_score_softplus_loss(logits, torch.tensor([1]), sharpness=1.0, margin=0.0)
    torch.testing.assert_close(loss, torch.tensor([math.log(2)]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[0, 1] < 0


def test_soft_targets_give_the_expectation():
    logits, settings = torch.randn(1, 3), {"sharpness": 1.0, "margin": 1.0}
    each = z_score_softplus_loss(logits.expand(3, 3), torch.arange(3), **settings)
    soft = z_score_softplus_loss(logits, torch.tensor([[0.2, 0.5, 0.3]]), **settings)
    torch.testing.assert_close(soft, (each @ torch.tensor([0.2, 0.5, 0.3]))[None])


def test_two_classes_are_refused():
    with pytest.raises(ValueError, match=r"logits of the shape \(4, 2\) have fewer than three classes"):
        z_score_softplus_loss(torch.randn(4, 2), torch.zeros(4).long(), sharpness=1.0, margin=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharpness": 0.0, "margin": 1.0}, r"sharpness=0\.0 must be > 0"),
        ({"sharpness": 1.0, "margin": float("inf")}, "margin=inf must be finite"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ZScoreSoftplusLoss(**settings)
