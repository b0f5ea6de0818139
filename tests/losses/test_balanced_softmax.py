import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import BalancedSoftmaxLoss, balanced_softmax_loss

COUNTS = (100, 10, 1)


def test_by_hand():
    """log(100 e^2 + 10 e + e^0.1) - 0.1 = 6.642739 - 0.1."""
    loss = balanced_softmax_loss(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([2]), counts=COUNTS)
    torch.testing.assert_close(loss, torch.tensor([6.542739]))


def test_equals_the_papers_fraction():
    logits, target = torch.randn(5, 3), [0, 1, 2, 2, 0]
    losses = []
    for row, y in zip(logits.tolist(), target):
        parts = [n * math.exp(z) for n, z in zip(COUNTS, row)]
        losses.append(-math.log(parts[y] / sum(parts)))
    ours = balanced_softmax_loss(logits, torch.tensor(target), counts=COUNTS)
    torch.testing.assert_close(ours, torch.tensor(losses))


def test_equal_counts_are_cross_entropy():
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    losses = balanced_softmax_loss(logits, target, counts=(4, 4, 4))
    torch.testing.assert_close(losses, F.cross_entropy(logits, target, reduction="none"))


def test_counts_beyond_half_precision_do_not_overflow():
    logits = torch.zeros(1, 2, dtype=torch.float16)
    loss = balanced_softmax_loss(logits, torch.tensor([1]), counts=(1_000_000, 1_000_000))
    torch.testing.assert_close(loss, torch.tensor([math.log(2)]))


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"counts\[0\]=-1 must be > 0"):
        BalancedSoftmaxLoss(counts=(-1, 2))
