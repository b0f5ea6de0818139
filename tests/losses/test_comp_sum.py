import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import CompSumLoss, comp_sum_loss, generalized_cross_entropy_loss


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.5, 2.0])
def test_equals_the_definition_by_sums_of_exponentials(tau):
    logits, target = torch.randn(5, 3), [0, 1, 2, 2, 0]
    losses = comp_sum_loss(logits, torch.tensor(target), tau=tau)
    u = [sum(math.exp(z - row[y]) for k, z in enumerate(row) if k != y) for row, y in zip(logits.tolist(), target)]
    torch.testing.assert_close(losses, torch.tensor([((1 + x) ** (1 - tau) - 1) / (1 - tau) for x in u]))


def test_the_family():
    """Cross entropy, generalized cross entropy, half of the absolute error."""
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    torch.testing.assert_close(
        comp_sum_loss(logits, target, tau=1.0), F.cross_entropy(logits, target, reduction="none")
    )
    generalized = generalized_cross_entropy_loss(logits, target, q=0.7)
    torch.testing.assert_close(comp_sum_loss(logits, target, tau=1.7), generalized)
    absolute = (logits.softmax(1) - F.one_hot(target, 3)).abs().sum(1)
    torch.testing.assert_close(comp_sum_loss(logits, target, tau=2.0), absolute / 2)


def test_a_sure_prediction_is_exact():
    """u = e^-30 = 9.3576e-14, where p in float64 has three digits of it left."""
    loss = comp_sum_loss(torch.tensor([[30.0, 0.0]], dtype=torch.float64), torch.tensor([0]), tau=0.0)
    assert loss.item() == pytest.approx(9.3576229688e-14, rel=1e-6)


@pytest.mark.parametrize("tau", [-0.1, 2.1])
def test_what_is_refused(tau):
    with pytest.raises(ValueError, match=rf"tau={tau} must be in \[0, 2\]"):
        CompSumLoss(tau=tau)
