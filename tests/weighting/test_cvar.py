import pytest
import torch

from lightning_objectives.weighting import CVaR, cvar_weights

LOSSES = torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0])


@pytest.mark.parametrize(
    ("losses", "share", "expected"),
    [
        # 2.5 of 5 samples: 4 and 3 whole, half of 2; the mean loss is (1 · 2 + 2 · 4 + 2 · 3) / 5 = 3.2
        (LOSSES, 0.5, [0, 1, 0, 2, 2]),
        # two of the three equal losses, shared
        ([1.0, 2.0, 2.0, 2.0], 0.5, [0, 4 / 3, 4 / 3, 4 / 3]),
        (LOSSES, 0.2, [0, 0, 0, 5, 0]),
        (LOSSES, 0.01, [0, 0, 0, 5, 0]),
        (LOSSES, 1.0, [1, 1, 1, 1, 1]),
    ],
    ids=["half", "ties", "one", "less than one", "all"],
)
def test_by_hand(losses, share, expected):
    weights = cvar_weights(torch.as_tensor(losses), share=share)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("share", [0.1, 0.29, 0.5, 0.77])
def test_it_is_the_least_of_eta_and_the_mean_excess(share):
    """min over eta of eta + mean[(loss - eta)+] / share: it is reached at one of the losses."""
    losses = torch.rand(100, dtype=torch.float64)
    values = losses + (losses - losses[:, None]).clamp_min(0).mean(1) / share
    weighted = (cvar_weights(losses, share=share) * losses).mean()
    torch.testing.assert_close(weighted, values.min())


def test_a_share_that_floats_cannot_hold_keeps_all_its_samples():
    """int(0.29 · 100) is 28."""
    weights = cvar_weights(torch.arange(100.0), share=0.29)
    torch.testing.assert_close(weights[71:], torch.full((29,), 1 / 0.29))
    torch.testing.assert_close(weights[:71], torch.zeros(71), rtol=0, atol=1e-6)


def test_a_non_finite_loss_weighs_nothing_and_the_others_as_without_it():
    weights = cvar_weights(torch.tensor([0.5, torch.inf, 2.0, 1.0, torch.nan, 4.0, -torch.inf, 3.0]))
    assert weights.tolist() == [0, 0, 1, 0, 0, 2, 0, 2]
    assert cvar_weights(torch.tensor([torch.nan, torch.inf])).tolist() == [1, 1]


def test_half_precision_and_the_types_of_weights():
    assert cvar_weights(LOSSES.bfloat16()).dtype == torch.float32
    assert cvar_weights(LOSSES.double()).dtype == torch.float64


def test_all_samples_leave_the_criterion_alone():
    assert not CVaR(share=1.0).active(step=0)
    assert CVaR().active(step=0)


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_what_is_refused(share):
    with pytest.raises(ValueError, match=rf"share={share} must be in \(0, 1\]"):
        CVaR(share=share)
