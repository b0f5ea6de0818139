import pytest
import torch

from lightning_objectives.losses import TverskyLoss, dice_loss, tversky_loss

LOGITS = torch.tensor([[0.9, 0.6, 0.2, 0.1]]).logit()[:, None]
T = torch.tensor([[1, 1, 0, 0]])


@pytest.mark.parametrize(("exponent", "expected"), [(1.0, 0.226804), (0.75, 0.328653)])
def test_by_hand(exponent, expected):
    """1 - 1.5 / (1.5 + 0.3 · 0.3 + 0.7 · 0.5) = 0.226804, and its power 3/4."""
    loss = tversky_loss(LOGITS, T, smooth=0.0, exponent=exponent)
    torch.testing.assert_close(loss, torch.tensor([expected]), rtol=1e-4, atol=0)


def test_equals_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(2, (3, 5), generator=generator)
    expected = []
    for z, t in zip(logits.softmax(1), target):
        classes = []
        for k in range(2):
            hit = sum(float(z[k, i]) * float(t[i] == k) for i in range(5))
            wrong = sum(float(z[k, i]) * float(t[i] != k) for i in range(5))
            missed = sum((1 - float(z[k, i])) * float(t[i] == k) for i in range(5))
            classes.append((1 - (hit + 0.5) / (hit + 0.2 * wrong + 0.9 * missed + 0.5)) ** 1.5)
        expected.append(sum(classes) / 2)
    losses = tversky_loss(logits, target, weight_fp=0.2, weight_fn=0.9, smooth=0.5, exponent=1.5)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


def test_halves_are_dice_with_twice_the_smoothing():
    logits, target = torch.randn(2, 3, 6), torch.randint(3, (2, 6))
    halves = tversky_loss(logits, target, weight_fp=0.5, weight_fn=0.5, smooth=0.5)
    torch.testing.assert_close(halves, dice_loss(logits, target, smooth=1.0))


def test_a_perfect_prediction_has_a_finite_gradient():
    logits = torch.tensor([[[60.0, -60.0]]], requires_grad=True)
    tversky_loss(logits, torch.tensor([[1, 0]]), exponent=0.75).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("setting", "value"), [("weight_fp", -0.1), ("weight_fn", float("inf")), ("smooth", -1.0), ("exponent", 0.0)]
)
def test_settings_outside_their_range_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting}={value} must be"):
        TverskyLoss(**{setting: value})
