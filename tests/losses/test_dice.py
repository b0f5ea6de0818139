import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import DiceLoss, dice_loss

P, T = torch.tensor([[0.9, 0.6, 0.2, 0.1]]), torch.tensor([[1, 1, 0, 0]])
LOGITS = P.logit()[:, None]


def slow(logits, target, mask, smooth, squared):
    """One image in plain Python: (C, positions) logits, positions of classes."""
    p, losses = logits.softmax(0), []
    for k in range(len(p)):
        both = predicted = wanted = 0.0
        for i in range(p.shape[1]):
            if mask[i]:
                a, b = p[k, i].item(), float(target[i] == k)
                both += a * b
                predicted += a * a if squared else a
                wanted += b
        losses.append(1 - (2 * both + smooth) / (predicted + wanted + smooth))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("settings", "expected"), [({}, 0.166667), ({"smooth": 0.0}, 0.210526)])
def test_by_hand(settings, expected):
    """2 · 1.5 / 3.8 without smoothing, and 4 / 4.8 with 1."""
    torch.testing.assert_close(dice_loss(LOGITS, T, **settings), torch.tensor([expected]), rtol=1e-4, atol=0)


def test_squares_by_hand():
    """The sums of squares are 1.22 and 2: 1 - 3 / 3.22."""
    loss = dice_loss(LOGITS, T, smooth=0.0, squared=True)
    torch.testing.assert_close(loss, torch.tensor([0.068323]), rtol=1e-4, atol=0)


def test_soft_targets_by_hand():
    """Differences 0.1, 0.1, 0.1, 0.1: I = (1.8 + 1.6 - 0.4) / 2 = 1.5, and 1 - 3 / 3.4."""
    soft = torch.tensor([[[0.8, 0.5, 0.3, 0.0]]])
    loss = dice_loss(LOGITS, soft, smooth=0.0)
    torch.testing.assert_close(loss, torch.tensor([0.117647]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("squared", [False, True])
def test_equals_a_slow_loop(squared):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 2, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (4, 2, 5), generator=generator)
    mask = torch.rand(4, 2, 5, generator=generator) < 0.7
    expected = [slow(z.flatten(1), t.flatten(), m.flatten(), 0.5, squared) for z, t, m in zip(logits, target, mask)]
    losses = dice_loss(logits, target, mask, smooth=0.5, squared=squared)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("squared", [False, True])
def test_it_is_least_where_prediction_and_target_agree(squared):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator)
    target = logits.softmax(1)
    best = dice_loss(logits, target, squared=squared)
    torch.testing.assert_close(best, torch.zeros(2))
    for _ in range(5):
        moved = logits + torch.randn(logits.shape, generator=generator) / 3
        assert (dice_loss(moved, target, squared=squared) > best).all()


def test_one_column_is_the_overlap_of_the_foreground_alone():
    two = torch.stack([torch.zeros(1, 4), LOGITS[:, 0]], 1)
    background = dice_loss(-LOGITS, 1 - T)
    torch.testing.assert_close(dice_loss(two, T), (dice_loss(LOGITS, T) + background) / 2)


def test_ignored_positions_leave_all_sums():
    """Also where their logits are NaN and their labels no class."""
    logits, target = torch.randn(2, 3, 6), torch.randint(3, (2, 6))
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    expected = dice_loss(logits[:, :, :4], target[:, :4])
    bad = torch.where(mask[:, None], logits, torch.nan).requires_grad_()
    losses = dice_loss(bad, torch.where(mask, target, -100), mask)
    torch.testing.assert_close(losses, expected)
    empty = dice_loss(logits, target, torch.zeros_like(mask), smooth=0.0)
    assert empty.tolist() == [0.0, 0.0]


def test_the_whole_batch_is_one_image():
    logits, target = torch.randn(4, 3, 2, 5), torch.randint(3, (4, 2, 5))
    joined = dice_loss(logits.movedim(0, 1).reshape(1, 3, 4, 10), target.reshape(1, 4, 10))
    torch.testing.assert_close(DiceLoss(whole_batch=True)(logits, target), joined.expand(4))


def test_half_precision_is_summed_in_float32():
    """256 x 256 positions of 0.5 would overflow."""
    logits = torch.zeros(1, 1, 256, 256, dtype=torch.float16)
    loss = dice_loss(logits, torch.ones(1, 256, 256, dtype=torch.long))
    torch.testing.assert_close(loss, torch.tensor([1 / 3]), rtol=1e-4, atol=0)


def test_refusals():
    with pytest.raises(ValueError, match=r"smooth=-1\.0 must be >= 0"):
        DiceLoss(smooth=-1.0)
    for target in (torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 3, 5)):
        with pytest.raises(ValueError, match="must have the same positions"):
            dice_loss(torch.zeros(2, 3, 4), target)
    with pytest.raises(ValueError, match=r"mask of the shape \(2, 5\)"):
        dice_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool))


def test_one_hot_shares_are_classes():
    target = F.one_hot(torch.tensor([[0, 2], [1, 1]]), 3).movedim(-1, 1).double()
    logits = torch.randn(2, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(dice_loss(logits, target), dice_loss(logits, target.argmax(1)))
