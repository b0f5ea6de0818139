import pytest
import torch

from lightning_objectives.weighting import SelfPaced, self_paced_weights

LOSSES = torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0])


@pytest.mark.parametrize(("form", "weights"), [("hard", [1, 1, 1, 0, 0]), ("linear", [0.8, 0.2, 0.6, 0, 0])])
def test_by_hand(form, weights):
    found = self_paced_weights(LOSSES, 0, threshold=2.5, form=form)
    torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float32))


@pytest.mark.parametrize("form", ["hard", "linear"])
@pytest.mark.parametrize("epoch", [0, 2])
def test_they_minimize_the_objective_among_a_grid_of_weights(form, epoch):
    """v ℓ - λ v, and v ℓ + λ / 2 (v² - 2 v), for each sample; the threshold is 1 · 1.5^epoch."""
    limit, grid = 1.5**epoch, torch.linspace(0, 1, 1001)
    penalty = -limit * grid if form == "hard" else limit / 2 * (grid**2 - 2 * grid)
    best = grid[(grid * LOSSES[:, None] + penalty).argmin(1)]
    found = self_paced_weights(LOSSES, epoch, threshold=1.0, growth=1.5, form=form)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-3)


def test_the_threshold_grows_with_the_epochs_until_all_take_part():
    method = SelfPaced(threshold=0.8, growth=2.0)
    taken = [int(method(LOSSES, torch.tensor(epoch)).sum()) for epoch in range(4)]
    assert taken == [1, 2, 4, 5]  # 0.8, 1.6, 3.2, 6.4


def test_a_threshold_below_all_losses_takes_none_and_a_loss_at_it_is_left_out():
    assert self_paced_weights(LOSSES, 0, threshold=0.5).tolist() == [0] * 5


def test_negative_losses_count_no_more_than_others_and_bad_ones_nothing():
    losses = torch.tensor([-3.0, torch.nan, -torch.inf, torch.inf, 0.5])
    assert self_paced_weights(losses, 0, threshold=1.0, form="linear").tolist() == [1, 0, 0, 0, 0.5]
    assert self_paced_weights(losses, 0, threshold=1.0).tolist() == [1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, r"threshold=0\.0 must be > 0"),
        ({"threshold": 1.0, "growth": 0.5}, r"growth=0\.5 must be >= 1"),
        ({"threshold": 1.0, "form": "log"}, "form='log' must be 'hard' or 'linear'"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SelfPaced(**settings)
