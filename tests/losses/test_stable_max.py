import math

import pytest
import torch

from lightning_objectives.losses import stable_max_loss


def s(z):
    return z + 1 if z >= 0 else 1 / (1 - z)


@pytest.mark.parametrize(("target", "expected"), [(0, math.log(3.5 / 2)), (1, math.log(3.5)), (2, math.log(7))])
def test_by_hand(target, expected):
    """s(1, 0, -1) = 2, 1, 1/2."""
    loss = stable_max_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([target]))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_equals_the_formula_in_plain_numbers():
    logits, target = 5 * torch.randn(20, 4), torch.arange(20) % 4
    expected = [-math.log(s(row[y]) / sum(map(s, row))) for row, y in zip(logits.tolist(), target.tolist())]
    torch.testing.assert_close(stable_max_loss(logits, target), torch.tensor(expected))


@pytest.mark.parametrize("z", [0.0, -0.0, 1.0, -1.0])
def test_the_slope_at_the_seam_and_where_the_released_form_gives_nan(z):
    """s'(0) = 1 from both sides. At 1 the branch 1 / (1 - z) is infinite, although it does not count."""
    logits = torch.tensor([[z, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(stable_max_loss(logits, torch.tensor([1])).sum(), logits)
    slope = 1.0 if z >= 0 else 1 / (1 - z) ** 2
    torch.testing.assert_close(gradient[0, 0], torch.tensor(slope / (s(z) + 1)))


def test_a_sample_that_is_fit_keeps_a_loss_where_softmax_rounds_to_zero():
    logits, target = torch.tensor([[200.0, 0.0]], requires_grad=True), torch.tensor([0])
    assert torch.nn.functional.cross_entropy(logits, target) == 0
    loss = stable_max_loss(logits, target)
    torch.testing.assert_close(loss, torch.tensor([math.log(202 / 201)]), rtol=1e-3, atol=0)
    assert torch.autograd.grad(loss.sum(), logits)[0][0, 0] < 0


def test_an_impossible_class_counts_nothing():
    logits = torch.tensor([[1.0, 0.0, -torch.inf]], requires_grad=True)
    loss = stable_max_loss(logits, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor([math.log(3 / 2)]))
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()
