import math

import pytest
import torch

from lightning_objectives.losses import AnchoredSFTLoss, anchored_sft_loss, dynamic_fine_tuning_loss
from lightning_objectives.testing import assert_laws

LOGITS, TARGET, EVEN = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([0]), torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("direction", "divergence"),
    [("forward", (math.log(2) + math.log(2 / 3)) / 2), ("reverse", (math.log(1 / 2) + 3 * math.log(3 / 2)) / 4)],
)
def test_by_hand(direction, divergence):
    """p = (1/4, 3/4) and a reference of (1/2, 1/2): log(4) / 4 + λ KL, with 0.143841 and 0.130812."""
    loss = anchored_sft_loss(LOGITS, TARGET, EVEN, strength=0.3, direction=direction)
    torch.testing.assert_close(loss, torch.tensor([math.log(4) / 4 + 0.3 * divergence]))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_gradients_of_the_divergence_are_those_of_its_formula(direction):
    logits, reference = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4).double()
    target = torch.arange(5) % 4
    with_anchor = anchored_sft_loss(logits, target, reference, strength=2.0, direction=direction)
    part = (with_anchor - dynamic_fine_tuning_loss(logits, target)).sum() / 2
    p, q = torch.distributions.Categorical(logits=logits), torch.distributions.Categorical(logits=reference)
    kl = torch.distributions.kl_divergence(*((q, p) if direction == "forward" else (p, q))).sum()
    torch.testing.assert_close(part, kl)
    torch.testing.assert_close(*(torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (part, kl)))


def test_at_the_reference_and_without_strength_it_is_dynamic_fine_tuning():
    logits, target = torch.randn(5, 4), torch.arange(5) % 4
    plain = dynamic_fine_tuning_loss(logits, target)
    torch.testing.assert_close(anchored_sft_loss(logits, target, logits + 3, strength=5.0), plain)
    torch.testing.assert_close(anchored_sft_loss(logits, target, torch.randn(5, 4), strength=0.0), plain)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_classes_that_both_rule_out_do_not_count(direction):
    masked = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    reference = torch.tensor([[0.5, 0.0, -torch.inf]])
    loss = anchored_sft_loss(masked, TARGET, reference, direction=direction)
    loss.sum().backward()
    torch.testing.assert_close(loss, anchored_sft_loss(masked[:, :2], TARGET, reference[:, :2], direction=direction))
    assert masked.grad.isfinite().all()


def test_the_reference_is_a_constant():
    reference = torch.zeros(1, 2, requires_grad=True)
    assert not anchored_sft_loss(LOGITS, TARGET, reference).requires_grad


def test_the_other_direction_keeps_the_laws():
    assert_laws(AnchoredSFTLoss(direction="reverse"))


def test_refusals():
    with pytest.raises(ValueError, match=r"strength=-1\.0 must be >= 0"):
        AnchoredSFTLoss(strength=-1.0)
    with pytest.raises(ValueError, match="direction='both' must be 'forward' or 'reverse'"):
        AnchoredSFTLoss(direction="both")
    with pytest.raises(ValueError, match=r"reference_logits of the shape \(1, 3\)"):
        anchored_sft_loss(LOGITS, TARGET, torch.zeros(1, 3))
