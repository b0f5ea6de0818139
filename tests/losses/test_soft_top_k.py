import math

import pytest
import torch

from lightning_objectives.losses import SoftTopKLoss, soft_top_k_loss

LABELS = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0]])


def slow(row, labels, k, sharpness):
    """By many halvings in plain Python."""

    def chances(t):
        return [1 / (1 + math.exp(-sharpness * (z + t))) for z in row]

    low, high = -100.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(chances(middle)) > k else (middle, high)
    own = [-math.log(p) for p, t in zip(chances(low), labels) if t]
    return sum(own) / len(own)


def test_by_hand():
    """Logits a, -a and k = 1: t is 0, so the losses are log(1 + e^-a) and log(1 + e^a) for a sharpness of 1."""
    logits = torch.tensor([[2.0, -2.0], [2.0, -2.0]])
    losses = soft_top_k_loss(logits, torch.tensor([0, 1]), k=1)
    torch.testing.assert_close(losses, torch.tensor([0.126928, 2.126928]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("k", "sharpness"), [(None, 1.0), (1, 0.5), (2, 3.0)])
def test_equals_a_plain_loop(k, sharpness):
    logits = torch.randn(3, 4, dtype=torch.float64)
    losses = soft_top_k_loss(logits, LABELS, k=k, sharpness=sharpness)
    rows = zip(logits.tolist(), LABELS.tolist())
    expected = [slow(row, labels, sum(labels) if k is None else k, sharpness) for row, labels in rows]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("k", "sharpness"), [(None, 1.0), (2, 3.0)])
def test_the_gradient_is_that_of_finite_differences(k, sharpness):
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights = LABELS * torch.tensor([0.5, 1.0, 0.25, 1.0])
    assert torch.autograd.gradcheck(lambda z: soft_top_k_loss(z, weights, k=k, sharpness=sharpness), logits)


def test_few_of_very_many_labels_have_their_threshold():
    """With equal logits each of two million has one chance in two million."""
    loss = soft_top_k_loss(torch.zeros(1, 2_000_000), torch.tensor([7]), k=1)
    assert loss.item() == pytest.approx(math.log(2e6), rel=1e-5)


def test_a_common_shift_changes_nothing():
    logits = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(soft_top_k_loss(logits + 50, LABELS), soft_top_k_loss(logits, LABELS))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_all_or_no_labels_cost_nothing(label):
    logits = torch.randn(2, 3, requires_grad=True)
    losses = soft_top_k_loss(logits, torch.full((2, 3), label))
    assert losses.tolist() == [0, 0]
    assert torch.autograd.grad(losses.sum(), logits)[0].tolist() == [[0, 0, 0]] * 2


def test_a_second_derivative_is_refused():
    logits = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="soft_top_k_loss has no second derivative"):
        torch.autograd.grad(soft_top_k_loss(logits, LABELS).sum(), logits, create_graph=True)


@pytest.mark.parametrize(
    ("settings", "message"), [({"k": 0}, "k=0 must be >= 1"), ({"sharpness": 0.0}, r"sharpness=0\.0 must be > 0")]
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SoftTopKLoss(**settings)


def test_a_choice_of_all_labels_is_refused():
    with pytest.raises(ValueError, match=r"k=4 must be below the number of labels in logits of the shape \(3, 4\)"):
        SoftTopKLoss(k=4)(torch.zeros(3, 4), LABELS)
