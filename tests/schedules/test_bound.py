"""The bound by a slow loop, by hand, and beside the one that the authors prove for a linear decay."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_objectives.schedules import ScheduleBound, WSDSchedule, schedule_rates


def slow(s, norms, distance, peak):
    """The formula, each sum anew."""
    last, energy = len(s), [(a * g) ** 2 for a, g in zip(s, norms)]
    inner = sum(s[k] / sum(s[k + 1 :]) * sum(energy[k:]) / sum(s[k:]) for k in range(last - 1))
    return distance**2 / (2 * peak * sum(s)) + peak * (sum(energy) / (2 * sum(s)) + inner / 2)


def harmonic(n):
    return sum(1 / k for k in range(1, n + 1))


@pytest.mark.parametrize("peak", [0.3, 1.0, 4.0])
def test_a_slow_loop_gives_the_same(peak):
    s, norms = [0.0, 0.5, 1.0, 0.0, 0.8, 0.3, 0.2], [3.0, 2.0, 1.0, 1.0, 0.5, 2.0, 1.5]
    bound = ScheduleBound(s, gradient_norms=norms, distance=1.7)
    assert bound.value(peak) == pytest.approx(slow(s, norms, 1.7, peak), rel=1e-12)
    assert ScheduleBound(s, gradient_norms=2.0).value(peak) == pytest.approx(slow(s, [2.0] * 7, 1.0, peak), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_constant_rates_by_hand(steps):
    """With s = 1 the sums are T and harmonic numbers: the least bound is D G sqrt((1 + H_{T-1}) / T)."""
    bound = ScheduleBound([1.0] * steps, gradient_norms=3.0, distance=2.0)
    assert bound.best_value == pytest.approx(6 * math.sqrt((1 + harmonic(steps - 1)) / steps), rel=1e-12)
    assert bound.best_peak == pytest.approx(2 / (3 * math.sqrt(steps * (1 + harmonic(steps - 1)))), rel=1e-12)


@pytest.mark.parametrize("steps", [100, 1000, 4900])
def test_a_linear_decay_stays_below_the_authors_closed_form(steps):
    """Their theorem for a decay over the last fifth is a little weaker, and their own test compares them so."""
    start = round(0.8 * (steps + 1))
    rates = [1.0] * start + [1 - (t + 1) / (steps + 1 - start) for t in range(steps + 1 - start)]
    n, m = steps, start
    total = 2 / 3 + (n + 2 * m) / (3 * (n + m)) + harmonic(n + m - 2) - harmonic(n - m + 1)
    total += -((n - m) * (m - 1)) / (3 * (n - m + 2) * (n + m)) + 1 / (n - m) ** 2 + harmonic(n - m - 1) / (n - m + 1)
    closed = math.sqrt(4 * total / (n + m))
    assert 0.8 * closed < ScheduleBound(rates).best_value <= closed


def test_the_best_peak_is_the_minimum_and_a_scale_moves_it_alone():
    s = [1 - t / 30 for t in range(30)]
    bound, double = ScheduleBound(s), ScheduleBound([2 * rate for rate in s])
    assert bound.value(bound.best_peak) == pytest.approx(bound.best_value, rel=1e-12)
    assert all(bound.value(factor * bound.best_peak) > bound.best_value for factor in (0.9, 1.1))
    assert double.best_value == pytest.approx(bound.best_value, rel=1e-12)
    assert double.best_peak == pytest.approx(bound.best_peak / 2, rel=1e-12)


def test_zeros_at_the_end_do_not_count():
    """A last rate of 0 would divide by 0."""
    assert ScheduleBound([1.0, 0.5, 0.0, 0.0]).best_value == ScheduleBound([1.0, 0.5]).best_value


def test_many_steps_lose_no_digits():
    s = [1 - t / 200_000 for t in range(200_000)]
    total, energy, found, after = 0.0, 0.0, 0.0, 0.0
    for rate in reversed(s):  # from the end, in plain numbers
        total, energy = total + rate, energy + rate**2
        found += rate / after * energy / total if after else 0.0
        after = total
    expected = math.sqrt((energy / total + found) / total)
    assert ScheduleBound(s).best_value == pytest.approx(expected, rel=1e-9)


def test_rates_of_a_schedule_and_nothing_changes():
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.state[weight]["momentum_buffer"].__deepcopy__ = weight.__deepcopy__ = lambda memo: pytest.fail("a copy")
    schedule = CosineAnnealingLR(optimizer, 4)
    rates = schedule_rates(schedule, 5)
    assert rates == pytest.approx([0.25 * (1 + math.cos(math.pi * t / 4)) for t in range(5)])
    assert schedule.last_epoch == 0
    assert optimizer.param_groups[0]["lr"] == 0.5
    wsd = WSDSchedule(torch.optim.SGD([weight], lr=1.0), stable_steps=40, decay_steps=10)
    assert ScheduleBound(schedule_rates(wsd, 50)).best_value < ScheduleBound([1.0] * 50).best_value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ScheduleBound([]), r"rates=\[\] must be finite numbers >= 0"),
        (lambda: ScheduleBound([0.0, 0.0]), "some of them > 0"),
        (lambda: ScheduleBound([1.0, -1.0]), r"rates=\[1\.0, -1\.0\]"),
        (lambda: ScheduleBound([1.0, math.nan]), "rates"),
        (lambda: ScheduleBound([math.inf] * 20), r"rates=\[inf, \.\.\., inf\]"),
        (lambda: ScheduleBound([1.0, 1.0], gradient_norms=[1.0]), r"gradient_norms=\[1\.0\] .* or 2 of them"),
        (lambda: ScheduleBound([1.0], gradient_norms=0.0), r"gradient_norms=0\.0"),
        (lambda: ScheduleBound([1.0], distance=0.0), r"distance=0\.0"),
        (lambda: ScheduleBound([1.0]).value(0.0), r"peak=0\.0"),
        (lambda: schedule_rates(None, 0), "steps=0 must be >= 1"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
