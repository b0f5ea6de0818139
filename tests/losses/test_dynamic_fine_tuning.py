import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import dynamic_fine_tuning_loss, probability_power_loss

P = torch.tensor([[0.2, 0.5, 0.3]])


def test_by_hand():
    """-p log p: 0.5 log 2, and of 0.3 the number 0.361192."""
    assert dynamic_fine_tuning_loss(P.log(), torch.tensor([1])).item() == pytest.approx(0.5 * math.log(2))
    assert dynamic_fine_tuning_loss(P.log(), torch.tensor([2])).item() == pytest.approx(0.361192, abs=1e-6)


def test_a_target_of_probabilities_gives_the_expectation():
    loss = dynamic_fine_tuning_loss(P.log(), torch.tensor([[0.0, 0.5, 0.5]]))
    torch.testing.assert_close(loss, torch.tensor([(0.5 * math.log(2) + 0.361192) / 2]), rtol=1e-5, atol=0)


def test_the_gradient_is_that_of_the_probability():
    logits, target = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.arange(6) % 3
    (ours,) = torch.autograd.grad(dynamic_fine_tuning_loss(logits, target).sum(), logits)
    (theirs,) = torch.autograd.grad(-logits.softmax(1).gather(1, target[:, None]).sum(), logits)
    torch.testing.assert_close(ours, theirs)
    (power,) = torch.autograd.grad(probability_power_loss(logits, target, power=1.0).sum(), logits)
    torch.testing.assert_close(ours, power)


def test_the_value_is_the_detached_probability_times_cross_entropy():
    logits, target = torch.randn(6, 5), torch.arange(6) % 5
    nll = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(dynamic_fine_tuning_loss(logits, target), nll * (-nll).exp())


def test_an_impossible_target_has_no_loss_and_no_gradient():
    logits = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    loss = dynamic_fine_tuning_loss(logits, torch.tensor([1]))
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert logits.grad.tolist() == [[0.0, 0.0]]
