import pytest
import torch

from lightning_objectives.weighting import SmallLossSelection, small_loss_weights

LOSSES = torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0])


def kept(losses, epoch=10**6, **settings):
    return int((small_loss_weights(losses, epoch, **settings) > 0).sum())


def test_by_hand():
    """Three of five are kept, so each weighs 5 / 3."""
    weights = small_loss_weights(LOSSES, 99, forget_rate=0.4)
    torch.testing.assert_close(weights, torch.tensor([5 / 3, 5 / 3, 5 / 3, 0, 0]))


def test_the_ramp_begins_in_the_first_epoch():
    """0.5 · (0.2, 0.4, 0.6, 0.8, 1, 1) of 10 samples are left out: 1, 2, 3, 4, 5, 5."""
    losses = torch.arange(10.0)
    settings = {"forget_rate": 0.5, "ramp_epochs": 5}
    assert [kept(losses, epoch, **settings) for epoch in range(6)] == [9, 8, 7, 6, 5, 5]
    assert [kept(losses, torch.tensor(epoch), **settings) for epoch in range(2)] == [9, 8]


def test_the_exponent_makes_the_ramp_steeper():
    """0.5 · T² / 10: 0.05, 0.2, 0.45, 0.5 of 20 samples are left out."""
    settings = {"forget_rate": 0.5, "ramp_epochs": 10, "exponent": 2.0}
    assert [kept(torch.arange(20.0), epoch, **settings) for epoch in range(4)] == [19, 16, 11, 10]


def test_equal_losses_at_the_threshold_share():
    weights = small_loss_weights(torch.tensor([1.0, 2.0, 2.0, 2.0]), 99, forget_rate=0.5)
    torch.testing.assert_close(weights, torch.tensor([2.0, 2 / 3, 2 / 3, 2 / 3]))


def test_a_count_that_floats_cannot_hold_is_not_rounded_down():
    """(1 - 0.8) · 10 is 1.9999999999999996 in floats."""
    assert kept(torch.arange(10.0), forget_rate=0.8) == 2


def test_one_sample_is_always_kept():
    assert kept(torch.arange(3.0), forget_rate=0.99) == 1


def test_a_non_finite_loss_is_left_out_and_the_others_weigh_as_without_it():
    weights = small_loss_weights(torch.tensor([0.5, torch.nan, 2.0, 1.0, 4.0, 3.0]), 99, forget_rate=0.4)
    torch.testing.assert_close(weights, torch.tensor([5 / 3, 0, 5 / 3, 5 / 3, 0, 0]))


def test_nothing_to_forget_leaves_the_criterion_alone():
    assert small_loss_weights(LOSSES, 99, forget_rate=0.0).tolist() == [1, 1, 1, 1, 1]
    assert not SmallLossSelection(forget_rate=0.0).active(step=0)
    assert SmallLossSelection().active(step=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forget_rate": 1.0}, r"forget_rate=1\.0 must be in \[0, 1\)"),
        ({"ramp_epochs": 0}, "ramp_epochs=0 must be >= 1"),
        ({"exponent": 0.0}, r"exponent=0\.0 must be > 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SmallLossSelection(**settings)
