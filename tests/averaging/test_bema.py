import pytest
import torch

from lightning_objectives.averaging import BEMA, EMA, bema_bias_weight, bema_ema_weight


def run(rule, path, *, start=0, step=None):
    """The weights read after a path of values, one a step from `start` on."""
    state = rule.init([torch.tensor([path[0]])])
    for t, value in enumerate(path[1:], start=start + 1):
        rule.update(state, [torch.tensor([value])], step=t, start=start)
    return rule.read(state, [torch.tensor([path[-1]])], step=step or start + len(path) - 1)[0].item()


@pytest.mark.parametrize(
    ("step", "beta", "alpha"), [(100, 0.095, 0.391), (400, 0.049, 0.300), (2000, 0.022, 0.218), (7200, 0.012, 0.169)]
)
def test_the_coefficients_at_the_papers_settings(step, beta, alpha):
    assert bema_ema_weight(step) == pytest.approx(beta, abs=5e-4)
    assert bema_bias_weight(step) == pytest.approx(alpha, abs=5e-4)


def test_two_steps_by_hand():
    # lag 1, gamma 3, kappa 1/2: beta_1 = 1/2, beta_2 = 7^-1/2; eta 1: alpha_2 = 1/7
    bema = BEMA(ema_power=0.5, bias_power=1.0, lag=1, multiplier=3.0)
    average = (1 - 7**-0.5) * (0.5 * 2 + 0.5 * 4) + 7**-0.5 * 10
    assert run(bema, [2.0, 4.0, 10.0]) == pytest.approx(average + (10 - 2) / 7, rel=1e-6)


def test_the_step_counts_from_the_beginning_of_training_not_of_the_average():
    bema = BEMA(ema_power=1.0, bias_power=1.0, lag=1)
    beta, alpha = 1 / 102, 1 / 102  # step 101, where the average began at 100
    assert run(bema, [1.0, 3.0], start=100) == pytest.approx(1 + beta * 2 + alpha * 2, rel=1e-6)


def test_the_correction_is_that_of_the_step_asked():
    bema = BEMA(ema_power=0.0, bias_power=1.0, lag=1)
    assert run(bema, [1.0, 3.0], step=4) == pytest.approx(3 + 2 / 5)


def test_without_correction_it_is_the_ema_of_that_weight():
    path = torch.randn(20, generator=torch.Generator().manual_seed(0)).tolist()
    plain = BEMA(ema_power=1.0, min_ema=0.1, lag=1e9, bias_power=float("inf"))
    expected = path[0]
    for value in path[1:]:
        expected = 0.9 * expected + 0.1 * value
    assert run(plain, path) == pytest.approx(expected, rel=1e-5)
    # an EMA whose first update copies, begun one step later, is the same
    assert run(EMA(decay=0.9), [0.0, *path]) == pytest.approx(expected, rel=1e-5)


def test_without_averaging_the_correction_stays():
    # kappa = 0: theta + alpha (theta - theta_0)
    assert run(BEMA(ema_power=0.0, bias_power=1.0, lag=1), [1.0, 5.0, 2.0]) == pytest.approx(2 + (2 - 1) / 3)


def test_the_floor_of_the_ema_weight():
    assert run(BEMA(ema_power=1.0, min_ema=0.5, bias_power=float("inf")), [0.0, 8.0, 8.0]) == pytest.approx(6.0)


def test_it_reaches_the_minimum_of_a_noisy_quadratic_before_the_ema_does():
    """The paper's Figure 1a: gradient descent with noise does not settle, an EMA lags, BEMA is there first."""
    curvature = torch.tensor([1.0, 0.01])  # noise in the steep direction, a long way to go in the flat one
    theta = torch.tensor([0.0, 10.0]).repeat(64, 1)  # 64 runs; the minimum is 0
    generator = torch.Generator().manual_seed(0)
    ema, bema = BEMA(bias_power=float("inf")), BEMA()
    states = [ema.init([theta]), bema.init([theta])]
    distances = []
    for step in range(1, 1001):
        theta = theta - 0.3 * curvature * (theta + 4 * torch.randn(64, 2, generator=generator))
        for rule, state in zip((ema, bema), states):
            rule.update(state, [theta], step=step)
        read = [rule.read(state, [theta], step=step)[0] for rule, state in zip((ema, bema), states)]
        distances.append([weights.norm(dim=1).mean().item() for weights in (theta, *read)])
    live, lagging, corrected = zip(*distances)
    assert min(live) > 1.0  # the live weights never settle
    first_ema, first_bema = (next(t for t, value in enumerate(d) if value < 1.0) for d in (lagging, corrected))
    assert first_bema < 0.6 * first_ema


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema_power": -0.1}, "ema_power=-0.1 must be in"),
        ({"ema_power": 1.1}, "ema_power=1.1 must be in"),
        ({"bias_power": -1.0}, "bias_power=-1.0 must be >= 0"),
        ({"lag": 0}, "lag=0 must be >= 1"),
        ({"multiplier": 0.0}, "multiplier=0.0 must be > 0"),
        ({"min_ema": 2.0}, "min_ema=2.0 must be in"),
        ({"min_ema": float("nan")}, "min_ema=nan must be in"),
    ],
)
def test_settings_outside_their_range(settings, message):
    with pytest.raises(ValueError, match=message):
        BEMA(**settings)
