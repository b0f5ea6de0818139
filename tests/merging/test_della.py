import inspect
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_objectives.merging import (
    DELLA,
    dare_merge,
    della_merge,
    magnitude_drop_rates,
    merge_checkpoints,
    task_arithmetic_merge,
    ties_merge,
)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_the_probabilities_of_the_authors_code_are_near(n):
    """It spreads them from p - window / 2 to p + window / 2, by n - 1 in place of n: at most window / n apart."""
    change = torch.rand(3, n)
    rates = magnitude_drop_rates(change, drop=0.4, window=0.2)
    for row, of_row in zip(change.tolist(), rates.tolist()):
        order = sorted(row)
        for value, rate in zip(row, of_row):
            keep = (0.6 - 0.1) + order.index(value) / (n - 1) * 0.2
            assert 0 <= (1 - keep) - rate + 1e-6 <= 0.2 / n + 2e-6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_rates_by_hand():
    """Ranks 4, 0, 2, 3, 1 of five: 0.3 + 0.04 r."""
    rates = magnitude_drop_rates(torch.tensor([0.1, -0.5, 0.3, 0.2, 0.4]), drop=0.4, window=0.2)
    torch.testing.assert_close(rates, torch.tensor([0.46, 0.30, 0.38, 0.42, 0.34]))


def test_each_row_has_ranks_of_its_own():
    change = torch.tensor([[[1.0, 2.0], [40.0, 30.0]]])
    rates = magnitude_drop_rates(change, drop=0.5, window=0.2)
    torch.testing.assert_close(rates, torch.tensor([[[0.5, 0.4], [0.4, 0.5]]]))
    assert magnitude_drop_rates(torch.tensor(3.0), drop=0.5, window=0.2).item() == pytest.approx(0.4)
    equal = magnitude_drop_rates(torch.ones(4), drop=0.5, window=0.4)
    torch.testing.assert_close(equal, torch.tensor([0.3, 0.4, 0.5, 0.6]))


def test_a_change_is_kept_by_its_rate_and_divided_by_it():
    """Many rows of the magnitudes 4, 2, 1, 3, of the ranks 0, 2, 3, 1: dropped with 0.1 + 0.2 r."""
    rows, magnitudes = 40_000, torch.tensor([4.0, 2.0, 1.0, 3.0])
    rates = torch.tensor([0.1, 0.5, 0.7, 0.3])
    merged = della_merge(
        [magnitudes.expand(rows, 4)], base=torch.zeros(rows, 4), drop=0.5, window=0.8, generator=seeded()
    )
    kept = merged != 0
    torch.testing.assert_close(kept.float().mean(0), 1 - rates, rtol=0, atol=0.011)
    torch.testing.assert_close(merged, torch.where(kept, magnitudes / (1 - rates), 0.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(merged.mean(0), magnitudes, rtol=0.03, atol=0)


def test_without_a_window_it_is_dare():
    base, *weights = torch.randn(4, 7, 50, generator=seeded())
    for elect_signs in (False, True):
        settings = {"base": base, "drop": 0.6, "scale": 0.3, "elect_signs": elect_signs}
        found = della_merge(weights, window=0.0, generator=seeded(), **settings)
        torch.testing.assert_close(found, dare_merge(weights, generator=seeded(), **settings))


def test_without_drops_it_is_task_arithmetic_or_ties():
    base, *weights = torch.randn(4, 50, generator=seeded())
    elected = della_merge(weights, base=base, drop=0.0, window=0.0, scale=0.3)
    torch.testing.assert_close(elected, ties_merge(weights, base=base, density=1.0, scale=0.3))
    added = della_merge(weights, base=base, drop=0.0, window=0.0, scale=0.3, elect_signs=False)
    torch.testing.assert_close(added, task_arithmetic_merge(weights, base=base, scale=0.3))


@pytest.mark.parametrize("elect_signs", [False, True])
def test_what_nobody_changed_stays_to_the_bit(elect_signs):
    base = torch.tensor([-0.0, 0.0, 0.1])
    merged = della_merge([base, base], base=base, elect_signs=elect_signs)
    assert torch.equal(merged.view(torch.int32), base.view(torch.int32))


def test_the_class_is_its_function_with_the_same_draws_and_defaults():
    """No law compares them, because the function takes a generator."""
    base, *weights = torch.randn(4, 50, generator=seeded())
    settings = {"drop": 0.4, "window": 0.3, "scale": 0.7, "elect_signs": False}
    found = DELLA(**settings).tensor(weights, base=base, generator=seeded(3))
    assert torch.equal(found, della_merge(weights, base=base, generator=seeded(3), **settings))
    for function in (della_merge, magnitude_drop_rates):
        theirs = inspect.signature(function).parameters
        ours = inspect.signature(DELLA).parameters
        assert {n: p.default for n, p in ours.items() if n in theirs} == {
            n: theirs[n].default for n in ours if n in theirs
        }


def test_files_with_a_number_and_halves(tmp_path):
    states = [{"w": k * torch.ones(4, 9).half(), "s": torch.tensor(1.0 * k)} for k in (0, 1, 2)]
    paths = [tmp_path / f"{place}.safetensors" for place in range(3)]
    for path, state in zip(paths, states):
        save_file(state, path)
    out = tmp_path / "out.safetensors"
    first, again, other = (
        load_file(merge_checkpoints(paths[1:], DELLA(), out, base=paths[0], seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first["w"], again["w"])
    assert not torch.equal(first["w"], other["w"])
    assert first["w"].dtype == torch.float16
    assert first["s"].shape == ()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"drop": 1.0, "window": 0.0}, "drop"),
        ({"drop": math.nan}, "drop"),
        ({"drop": 0.1, "window": 0.3}, "window"),
        ({"drop": 0.9, "window": 0.2}, "window"),
        ({"window": -0.1}, "window"),
        ({"scale": math.inf}, "scale"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, name):
    with pytest.raises(ValueError, match=rf"{name}=.* must be"):
        DELLA(**settings)
    with pytest.raises(ValueError, match=rf"{name}=.* must be"):
        della_merge([torch.ones(1)], base=torch.ones(1), **settings)
    if name != "scale":
        with pytest.raises(ValueError, match=rf"{name}=.* must be"):
            magnitude_drop_rates(torch.ones(1), **settings)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"weights=\[\] hold no network"):
        della_merge([], base=torch.ones(2))
    with pytest.raises(ValueError, match=r"weights\[1\] of the shape \(1,\)"):
        della_merge([torch.ones(2), torch.ones(1)], base=torch.ones(2))
    with pytest.raises(ValueError, match="DELLA cannot merge without the base"):
        DELLA().tensor([torch.ones(1)])
