import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import DecoupledSoftmaxLoss, decoupled_softmax_loss


def test_by_hand():
    """Positives 2 and 1 against a negative of 0.1: log(1 + e^-1.9) = 0.139387 and log(1 + e^-0.9) = 0.341154."""
    loss = decoupled_softmax_loss(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor([(0.139387 + 0.341154) / 2]), rtol=0, atol=1e-6)


def test_equals_a_plain_loop():
    logits, labels = (
        torch.randn(5, 4),
        torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0]]),
    )
    expected = []
    for row, t in zip((logits / 0.5).tolist(), labels.tolist()):
        others = sum(math.exp(z) for z, y in zip(row, t) if not y)
        own = [-math.log(math.exp(z) / (math.exp(z) + others)) for z, y in zip(row, t) if y]
        expected.append(sum(own) / len(own))
    losses = decoupled_softmax_loss(logits, labels.float(), temperature=0.5)
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_one_positive_label_is_cross_entropy():
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    expected = F.cross_entropy(logits / 2, target, reduction="none")
    torch.testing.assert_close(decoupled_softmax_loss(logits, target, temperature=2.0), expected)


def test_another_positive_label_does_not_push_the_first_down():
    logits = torch.tensor([[1.0, 5.0, 0.0]], requires_grad=True)
    loss = decoupled_softmax_loss(logits, torch.tensor([[1.0, 1.0, 0.0]]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[0, 0] < 0
    assert gradient[0, 1] < 0
    assert gradient[0, 2] > 0


def test_labels_weight_the_terms():
    logits = torch.tensor([[2.0, 1.0, 0.1]])
    loss = decoupled_softmax_loss(logits, torch.tensor([[0.9, 0.3, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor([0.75 * 0.139387 + 0.25 * 0.341154]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_all_or_no_labels_cost_nothing_and_have_no_nan(label):
    logits = torch.randn(2, 3, requires_grad=True)
    losses = decoupled_softmax_loss(logits, torch.full((2, 3), label))
    assert losses.tolist() == [0, 0]
    assert torch.autograd.grad(losses.sum(), logits)[0].tolist() == [[0, 0, 0]] * 2


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be > 0"):
        DecoupledSoftmaxLoss(temperature=0.0)
