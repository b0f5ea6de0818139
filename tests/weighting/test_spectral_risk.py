import itertools
import math

import pytest
import torch

from lightning_objectives.weighting import SpectralRisk, spectral_risk_weights

LOSSES = torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0])


def test_an_extremile_by_hand():
    """5 ((i / 5)² - ((i - 1) / 5)²) = (2 i - 1) / 5 for the places 1, 3, 2, 5, 4."""
    torch.testing.assert_close(spectral_risk_weights(LOSSES), torch.tensor([0.2, 1.0, 0.6, 1.8, 1.4]))


def test_an_extremile_is_the_expected_maximum_of_as_many_losses():
    """Over all 5³ draws of three with replacement."""
    maxima = [max(draw) for draw in itertools.product(LOSSES.tolist(), repeat=3)]
    weights = spectral_risk_weights(LOSSES, strength=3.0)
    torch.testing.assert_close((weights * LOSSES).mean(), torch.tensor(sum(maxima) / len(maxima)))


def test_the_exponential_spectrum_equals_a_plain_loop():
    """The integral of rho e^(rho u) / (e^rho - 1) from (i - 1) / 5 to i / 5."""
    weights = spectral_risk_weights(LOSSES, spectrum="exponential", strength=3.0)
    step = [5 * (math.exp(3 * i / 5) - math.exp(3 * (i - 1) / 5)) / (math.exp(3) - 1) for i in (1, 3, 2, 5, 4)]
    torch.testing.assert_close(weights, torch.tensor(step))


def test_equal_losses_share():
    weights = spectral_risk_weights(torch.tensor([1.0, 2.0, 2.0, 4.0]))
    torch.testing.assert_close(weights, torch.tensor([0.25, 1.0, 1.0, 1.75]))


def test_the_least_strength_gives_equal_weights_and_leaves_the_criterion_alone():
    for spectrum, least in (("extremile", 1.0), ("exponential", 0.0)):
        settings = {"spectrum": spectrum, "strength": least}
        torch.testing.assert_close(spectral_risk_weights(LOSSES, **settings), torch.ones(5))
        assert not SpectralRisk(**settings).active(step=0)
        assert SpectralRisk(spectrum=spectrum, strength=least + 1).active(step=0)


@pytest.mark.parametrize("spectrum", ["extremile", "exponential"])
def test_a_great_strength_is_the_highest_loss_alone(spectrum):
    weights = spectral_risk_weights(LOSSES, spectrum=spectrum, strength=1000.0)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0, 0, 5, 0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spectrum": "flat"}, "spectrum='flat' must be 'extremile' or 'exponential'"),
        ({"strength": 0.5}, r"strength=0\.5 must be >= 1"),
        ({"spectrum": "exponential", "strength": -1.0}, r"strength=-1\.0 must be >= 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SpectralRisk(**settings)
