"""The cross entropy by hand is torch's, so that its time may stand beside torch's."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.speed.large_vocabulary import Fused


@pytest.mark.parametrize("chunk", [2, 3, 7, 100])
def test_by_hand_value_and_gradients_are_those_of_torch(chunk):
    """Chunks that divide the rows, or not, or hold them all; a factor on the loss reaches the gradients."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 4, generator=draw, dtype=torch.float64).requires_grad_() for n in (8, 11))
    target = torch.randint(11, (8,), generator=draw)
    found, expected = Fused.apply(hidden, weight, target, chunk), F.cross_entropy(hidden @ weight.T, target)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (found, expected))
    torch.testing.assert_close(*gradients)


def test_by_hand_large_logits_stay_finite():
    """Logits of ±10,000: a loss of 0 where the largest is the target's, of 20,000 where the smallest is."""
    hidden, weight = torch.tensor([[1e4], [1e4]]).requires_grad_(), torch.tensor([[1.0], [-1.0]]).requires_grad_()
    loss = Fused.apply(hidden, weight, torch.tensor([0, 1]), 2)
    loss.backward()
    assert loss == 1e4
    assert hidden.grad.tolist() == [[0.0], [1.0]]
    assert weight.grad.tolist() == [[5e3], [-5e3]]
