import math

import pytest
import torch

from lightning_objectives.averaging import SWA, PolyakAveraging, polyak_weight


def average(rule, path):
    state = rule.init([path[0]])
    for step, weights in enumerate(path[1:], start=1):
        rule.update(state, [weights], step=step)
    return rule.read(state, [path[-1]], step=len(path) - 1)[0]


def numbers(*values):
    return [torch.tensor([float(value)], dtype=torch.float64) for value in values]


def test_worked_by_hand():
    """c = 1, .8, 2/3, 4/7, .5 at a power of 3: 1, 3.4, 7.133333, 12.2, 18.6."""
    assert average(PolyakAveraging(power=3.0), numbers(7, 1, 4, 9, 16, 25)).item() == pytest.approx(18.6, abs=1e-12)
    assert average(PolyakAveraging(), numbers(7, 1, 4, 9, 16, 25)).item() == pytest.approx(11.0, abs=1e-12)


@pytest.mark.parametrize("power", [0, 1, 2, 5])
def test_the_shares_are_those_of_the_product(power):
    """The share of the i-th of t weights is c_i prod (1 - c_j), which for whole powers is a ratio of binomials."""
    t = 12
    for i in range(1, t + 1):
        path = numbers(*[0] * i, 1, *[0] * (t - i))
        share = math.comb(i + power - 1, power) / math.comb(t + power, power + 1)
        assert average(PolyakAveraging(power=float(power)), path).item() == pytest.approx(share, rel=1e-12)


def test_without_a_power_it_is_swa_of_every_step():
    path = [*torch.randn(30, 4, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(average(PolyakAveraging(), path), average(SWA(), path))
    torch.testing.assert_close(average(PolyakAveraging(), path), torch.stack(path[1:]).mean(0))


def test_the_noise_of_a_line_cancels():
    """SGD on (w - 1)² / 2 with noise: the last weights stay noisy, and the mean settles at 1."""
    generator = torch.Generator().manual_seed(0)
    w, path = torch.full((500,), 1.0), []
    for _ in range(400):
        w = w - 0.1 * (w - 1 + torch.randn(500, generator=generator))
        path.append(w)
    last, mean = (path[-1] - 1).std().item(), (average(PolyakAveraging(), [w, *path]) - 1).std().item()
    assert last == pytest.approx(math.sqrt(0.1 / 1.9), rel=0.15)
    assert mean == pytest.approx(1 / math.sqrt(400), rel=0.15)


@pytest.mark.parametrize("power", [-0.1, math.nan, math.inf])
def test_a_power_out_of_range_is_refused(power):
    with pytest.raises(ValueError, match=r"power=.* must be finite and >= 0"):
        PolyakAveraging(power=power)
    with pytest.raises(ValueError, match=r"power=.* must be finite and >= 0"):
        polyak_weight(3, power=power)
