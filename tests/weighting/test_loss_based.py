import math

import pytest
import torch

from lightning_objectives.weighting import LossBasedReweighting, loss_based_weights

STRATEGIES = ["lin_upper", "quadratic", "extremes"]


def reference(losses, strategy, temperature):
    """In plain Python, one loss after the other."""
    low, high = min(losses), max(losses)
    powers = []
    for loss in losses:
        h = (2 * loss - (high + low)) / max(high - low, 1e-6)
        f = {"lin_upper": min(h + 1, 1), "quadratic": 1 - h**2, "extremes": abs(h)}[strategy]
        powers.append(math.exp(f / temperature))
    return torch.tensor([len(losses) * power / sum(powers) for power in powers])


# Losses 1, 2, 5 stand at h = -1, -1/2, 1, hence f = (0, 1/2, 1), (0, 3/4, 0) and (1, 1/2, 1).
@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        # e^0 = 1, e^0.5 = 1.64872, e^1 = 2.71828; their sum 5.36700
        ("lin_upper", [0.55897, 0.92159, 1.51944]),
        # 1, e^0.75 = 2.11700, 1; 4.11700
        ("quadratic", [0.72869, 1.54263, 0.72869]),
        # e, e^0.5, e; 7.08528
        ("extremes", [1.15096, 0.69809, 1.15096]),
    ],
)
def test_by_hand(strategy, expected):
    weights = loss_based_weights(torch.tensor([1.0, 2.0, 5.0]), strategy=strategy)
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=0, atol=2e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("temperature", [0.1, 0.4, 1.0, 100.0])
def test_equals_a_plain_loop(strategy, temperature):
    losses = torch.rand(17) * 4
    weights = loss_based_weights(losses, strategy=strategy, temperature=temperature)
    torch.testing.assert_close(weights, reference(losses.tolist(), strategy, temperature), rtol=1e-4, atol=1e-6)


def test_lin_upper_is_flat_above_the_middle_of_the_range_and_quadratic_drops_both_ends():
    losses = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    upper = loss_based_weights(losses)
    assert upper[0] < upper[1] < upper[2] == upper[3] == upper[4]
    middle = loss_based_weights(losses, strategy="quadratic")
    assert middle[0] == middle[4] < middle[1] == middle[3] < middle[2]
    ends = loss_based_weights(losses, strategy="extremes")
    assert ends[0] == ends[4] > ends[1] == ends[3] > ends[2]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_ratio_of_two_weights_is_at_most_e_to_the_one_by_temperature(strategy):
    weights = loss_based_weights(torch.tensor([0.0, 1.0, 2.0]), strategy=strategy, temperature=0.4)
    torch.testing.assert_close(weights.max() / weights.min(), torch.tensor(12.1825), rtol=1e-4, atol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_high_temperature_makes_the_weights_equal(strategy):
    losses = torch.tensor([0.1, 1.0, 7.0])
    torch.testing.assert_close(
        loss_based_weights(losses, strategy=strategy, temperature=1e6), torch.ones(3), rtol=0, atol=1e-5
    )
    assert loss_based_weights(losses, strategy=strategy, temperature=math.inf).tolist() == [1, 1, 1]


def test_two_samples_get_the_extreme_weights_whatever_the_gap():
    """1 / (1 + e^2.5) = 0.0759, also where the losses nearly agree; the paper's code cancels there."""
    for losses in ([2.0, 2.0001], [2.0, 2.00001], [0.0, 9.0]):
        weights = loss_based_weights(torch.tensor(losses), temperature=0.4)
        torch.testing.assert_close(weights / 2, torch.tensor([0.07586, 0.92414]), rtol=0, atol=1e-5)


def test_one_outlier_takes_most_of_the_mass_but_not_with_quadratic():
    """Five losses near 1 stand at h = -1 to -0.992, so that one of 100 weighs e^(1/0.4) = 12.18 of 17.2."""
    losses = torch.tensor([1.0, 1.1, 1.2, 1.3, 1.4, 100.0])
    assert loss_based_weights(losses, temperature=0.4)[-1] / 6 == pytest.approx(0.69, abs=0.02)
    assert loss_based_weights(losses, temperature=0.4, strategy="quadratic")[-1] / 6 == pytest.approx(1 / 6, abs=0.01)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_weighs_nothing_and_the_others_as_without_it(strategy, bad):
    weights = loss_based_weights(torch.tensor([1.0, bad, 2.0, 5.0]), strategy=strategy)
    assert weights[1] == 0
    alone = loss_based_weights(torch.tensor([1.0, 2.0, 5.0]), strategy=strategy)
    torch.testing.assert_close(weights[[0, 2, 3]], alone)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("losses", [[3.0], [0.0, 0.0], [2.5] * 5, [math.nan, math.inf], []])
def test_weights_are_one_where_nothing_tells_the_losses_apart(strategy, losses):
    weights = loss_based_weights(torch.tensor(losses), strategy=strategy, temperature=0.4)
    torch.testing.assert_close(weights, torch.ones(len(losses)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    losses = torch.tensor([1.0, 2.0, 5.0], dtype=dtype)
    weights = loss_based_weights(losses)
    assert weights.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(weights.float(), loss_based_weights(losses.float()))


def test_float64_stays():
    assert loss_based_weights(torch.tensor([1.0, 2.0], dtype=torch.float64)).dtype == torch.float64


def test_float16_losses_near_its_greatest_number_do_not_overflow():
    weights = loss_based_weights(torch.tensor([0.0, 30000.0, 60000.0], dtype=torch.float16))
    torch.testing.assert_close(weights, torch.tensor([0.4661, 1.2670, 1.2670]), rtol=0, atol=1e-4)


def test_the_warm_up_and_an_infinite_temperature_leave_the_criterion_alone():
    method = LossBasedReweighting(warmup_steps=3)
    assert [method.active(step=step) for step in range(5)] == [False, False, False, True, True]
    assert not LossBasedReweighting(temperature=math.inf).active(step=10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "upper"}, r"strategy='upper' must be 'lin_upper', 'quadratic' or 'extremes'\."),
        ({"temperature": 0.0}, r"temperature=0\.0 must be > 0; use float\('inf'\)"),
        ({"temperature": math.nan}, r"temperature=nan must be > 0"),
        ({"warmup_steps": -1}, r"warmup_steps=-1 must be >= 0\."),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LossBasedReweighting(**settings)
