import pytest
import torch

from lightning_objectives.losses import SelfAdjustingDiceLoss, self_adjusting_dice_loss


def test_by_hand():
    """p = (0.8, 0.2), f = (0.16, 0.16): 1 - 1.32 / 2.16 and 1 - 1 / 1.16."""
    loss = self_adjusting_dice_loss(torch.tensor([[0.8, 0.2]]).log(), torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor([(1 - 1.32 / 2.16 + 1 - 1 / 1.16) / 2]))


@pytest.mark.parametrize(("alpha", "smooth"), [(0.0, 1.0), (0.5, 0.1), (2.0, 1e-4)])
def test_equals_a_plain_loop(alpha, smooth):
    logits, soft = torch.randn(4, 3), torch.tensor([[0.5, 0.5, 0.0], [1, 0, 0], [0.1, 0.2, 0.7], [0, 0, 1]])
    expected = []
    for row, q in zip(logits.softmax(1).tolist(), soft.tolist()):
        f = [(1 - p) ** alpha * p for p in row]
        expected.append(sum(1 - (2 * a * b + smooth) / (a + b + smooth) for a, b in zip(f, q)) / 3)
    losses = self_adjusting_dice_loss(logits, soft, alpha=alpha, smooth=smooth)
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_a_right_and_a_wrong_prediction_without_alpha():
    """0, and (1 - γ / (1 + γ)) for both classes."""
    logits = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    losses = self_adjusting_dice_loss(logits, torch.tensor([0, 0]), alpha=0.0, smooth=0.25)
    torch.testing.assert_close(losses, torch.tensor([0.0, 0.8]))


def test_the_rows_do_not_share_a_denominator():
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    alone = [self_adjusting_dice_loss(logits[i : i + 1], target[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(self_adjusting_dice_loss(logits, target), torch.cat(alone))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_a_saturated_sample_has_a_finite_gradient(alpha):
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = self_adjusting_dice_loss(logits, torch.tensor([0]), alpha=alpha)
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"alpha": -1.0}, r"alpha=-1\.0 must be >= 0"), ({"smooth": 0.0}, r"smooth=0\.0 must be > 0")],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SelfAdjustingDiceLoss(**settings)
