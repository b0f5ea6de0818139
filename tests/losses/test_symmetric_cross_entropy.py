import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import SymmetricCrossEntropyLoss, symmetric_cross_entropy_loss

LOGITS = torch.tensor([[2.0, 1.0, 0.1]])


@pytest.mark.parametrize(
    ("target", "log_zero", "expected"),
    [
        # 0.1 · 1.41703 + 4 · (1 - 0.24243)
        (torch.tensor([1]), -4.0, 3.171971),
        (torch.tensor([1]), math.log(1e-4), 7.119153),
        # 0.1 · 0.71703 - (0.65900 log 0.7 + 0.24243 log 0.3 - 4 · 0.09857)
        (torch.tensor([[0.7, 0.3, 0.0]]), -4.0, 0.992898),
    ],
    ids=["class", "as the code", "shares"],
)
def test_worked_values(target, log_zero, expected):
    loss = symmetric_cross_entropy_loss(LOGITS, target, log_zero=log_zero)
    torch.testing.assert_close(loss, torch.tensor([expected]), rtol=0, atol=2e-6)


def test_equals_a_plain_loop():
    logits, soft = torch.randn(4, 3), torch.tensor([[0.5, 0.5, 0.0], [1, 0, 0], [0.1, 0.2, 0.7], [0.01, 0, 0.99]])
    losses = []
    for p, q in zip(logits.softmax(1).tolist(), soft.tolist()):
        forward = -sum(b * math.log(a) for a, b in zip(p, q))
        reverse = -sum(a * max(math.log(b) if b else -math.inf, -3) for a, b in zip(p, q))
        losses.append(2 * forward + 0.5 * reverse)
    ours = symmetric_cross_entropy_loss(logits, soft, alpha=2.0, beta=0.5, log_zero=-3.0)
    torch.testing.assert_close(ours, torch.tensor(losses))


def test_without_the_reverse_it_is_cross_entropy():
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    losses = symmetric_cross_entropy_loss(logits, target, alpha=2.0, beta=0.0)
    torch.testing.assert_close(losses, 2 * F.cross_entropy(logits, target, reduction="none"))


def test_the_reverse_of_a_uniform_target_is_log_c():
    losses = symmetric_cross_entropy_loss(torch.randn(4, 3), torch.full((4, 3), 1 / 3), alpha=0.0)
    torch.testing.assert_close(losses, torch.full((4,), math.log(3)))


def test_the_samples_that_are_most_wrong_still_have_the_gradient_of_cross_entropy():
    """Clipping p at 1e-7, as the authors' code does, takes it away."""
    logits = torch.tensor([[-30.0, 0.0]], requires_grad=True)
    loss = symmetric_cross_entropy_loss(logits, torch.tensor([0]))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0], torch.tensor([[-0.1, 0.1]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, r"alpha=-1\.0 must be >= 0"),
        ({"beta": -1.0}, r"beta=-1\.0 must be >= 0"),
        ({"log_zero": 0.0}, r"log_zero=0\.0 must be < 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SymmetricCrossEntropyLoss(**settings)
