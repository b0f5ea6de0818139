import math

import pytest
import torch
from averaging_nets import fit

from lightning_objectives.averaging import SWA, PowerEMA, power_ema_decay, power_ema_exponent
from lightning_objectives.callbacks import AverageWeights


def average(rule, path, *, start=0, every=1):
    state = rule.init([path[0]])
    for place, weights in enumerate(path[1:], start=1):
        rule.update(state, [weights], step=start + place * every, start=start)
    return rule.read(state, [path[-1]], step=start + every * (len(path) - 1))[0]


def numbers(*values):
    return [torch.tensor([float(value)], dtype=torch.float64) for value in values]


def width(gamma):
    """The standard deviation of t^gamma on [0, 1], of the moments (gamma + 1) / (gamma + 1 + n)."""
    first, second = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    return math.sqrt(second - first**2)


@pytest.mark.parametrize(("sigma", "gamma"), [(0.05, 16.972199), (0.1, 6.937204)])
def test_the_exponents_of_the_papers_widths(sigma, gamma):
    assert power_ema_exponent(sigma) == pytest.approx(gamma, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 16.0, 300.0])
def test_the_width_of_the_profile_comes_back(gamma):
    assert power_ema_exponent(min(width(gamma), 1 / math.sqrt(12))) == pytest.approx(gamma, rel=1e-6, abs=1e-6)


def test_worked_by_hand():
    """Gamma 2: (i³ - (i-1)³) / 125 of 1, 4, 9, 16 and 25: (1 + 28 + 171 + 592 + 1525) / 125."""
    assert average(PowerEMA(sigma_rel=width(2.0)), numbers(7, 1, 4, 9, 16, 25)).item() == pytest.approx(
        18.536, abs=1e-9
    )


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.2])
def test_the_share_of_each_step(sigma):
    exponent, last = power_ema_exponent(sigma) + 1, 40
    for i in (1, 2, 20, 39, 40):
        path = numbers(1, *[0] * (i - 1), 1, *[0] * (last - i))
        share = (i / last) ** exponent - ((i - 1) / last) ** exponent
        assert average(PowerEMA(sigma_rel=sigma), path).item() == pytest.approx(share, rel=1e-9, abs=1e-15)


def test_its_width_is_that_part_of_any_training():
    """Of the times themselves, the spread that the shares give."""
    for steps in (1000, 3000):
        times = torch.arange(steps + 1, dtype=torch.float64) / steps
        path = [*torch.stack([times, times**2], 1)]
        mean, square = average(PowerEMA(sigma_rel=0.1), path).tolist()
        assert math.sqrt(square - mean**2) == pytest.approx(0.1, rel=0.01)


def test_the_widest_is_the_plain_mean():
    path = [*torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]
    torch.testing.assert_close(average(PowerEMA(sigma_rel=1 / math.sqrt(12)), path), average(SWA(), path))


def test_intervals_and_a_late_start_change_nothing():
    """What counts is the part of the average's own time, as the shares of equal intervals do."""
    path = numbers(*range(12))
    usual = average(PowerEMA(), path).item()
    assert average(PowerEMA(), path, start=500, every=100).item() == usual


def test_in_a_training_with_two_widths():
    callback = AverageWeights([PowerEMA(sigma_rel=0.1), PowerEMA(sigma_rel=0.2)], every_n_steps=2)
    net, _ = fit(callback)
    values = {name: torch.cat([v.flatten() for v in callback.weights(name).values()]) for name in callback.names}
    raw = torch.cat([v.flatten() for v in callback.weights("raw").values()])
    path = [*net.path, raw]
    for sigma, found in zip((0.1, 0.2), values.values(), strict=True):
        taken = [path[0], *(path[step] for step in (2, 4, 6, 8))]
        torch.testing.assert_close(found, average(PowerEMA(sigma_rel=sigma), taken), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, -0.1, 0.3, math.nan])
def test_a_width_out_of_range_is_refused(sigma):
    for function in (lambda: PowerEMA(sigma_rel=sigma), lambda: power_ema_exponent(sigma)):
        with pytest.raises(ValueError, match=r"sigma_rel=.* must be > 0 and at most 1 / sqrt\(12\)"):
            function()
    with pytest.raises(ValueError, match=r"sigma_rel=.* must be"):
        power_ema_decay(3, sigma_rel=sigma)
