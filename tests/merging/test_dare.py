import inspect
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_objectives.merging import DARE, dare_merge, merge_checkpoints, task_arithmetic_merge, ties_merge


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_worked_by_hand():
    """Of [.4, -.2, .6, .1] all but the second is kept, of [-.5, .3, .2, .1] all but the third, and divided by 0.6.

    The signs are those of .4 - .5, .3, .6 and .1 + .1; -.5/.6, .3/.6, .6/.6 and the mean of .1/.6 twice. The masks are
    one draw of many, which the seeds come to.
    """
    weights = [torch.tensor([0.4, -0.2, 0.6, 0.1]), torch.tensor([-0.5, 0.3, 0.2, 0.1])]
    elected, added = torch.tensor([-5 / 6, 0.5, 1.0, 1 / 6]), torch.tensor([-1 / 6, 0.5, 1.0, 1 / 3])
    for expected, elect_signs in ((elected, True), (added, False)):
        settings = {"base": torch.zeros(4), "drop": 0.4, "elect_signs": elect_signs}
        draws = (dare_merge(weights, generator=seeded(seed), **settings) for seed in range(1000))
        assert any(torch.allclose(found, expected, rtol=0, atol=1e-6) for found in draws)


def test_a_change_is_dropped_or_divided_by_what_is_kept_and_the_expected_change_is_its_own():
    base, change = torch.randn(100_000, generator=seeded()), 1 + torch.rand(100_000, generator=seeded(1))
    merged = dare_merge([base + change], base=base, drop=0.7, scale=0.5, generator=seeded())
    kept = merged != base
    assert kept.float().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 1e5))
    torch.testing.assert_close((merged - base)[kept], 0.5 * change[kept] / 0.3, rtol=0, atol=1e-5)
    assert (merged - base).mean().item() == pytest.approx(0.5 * change.mean().item(), rel=0.02)


def test_each_network_draws_its_own():
    base, change = torch.zeros(1000), torch.ones(1000)
    merged = dare_merge([change, change], base=base, drop=0.5, generator=seeded())
    counts = [(merged == value).float().mean().item() for value in (0.0, 2.0, 4.0)]
    assert counts == pytest.approx([0.25, 0.5, 0.25], abs=0.06)


def test_without_drops_it_is_task_arithmetic_or_ties():
    base, *weights = torch.randn(4, 50, generator=seeded())
    added = dare_merge(weights, base=base, drop=0.0, scale=0.3)
    torch.testing.assert_close(added, task_arithmetic_merge(weights, base=base, scale=0.3))
    elected = dare_merge(weights, base=base, drop=0.0, scale=0.3, elect_signs=True)
    torch.testing.assert_close(elected, ties_merge(weights, base=base, density=1.0, scale=0.3))


@pytest.mark.parametrize("elect_signs", [False, True])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_what_nobody_changed_stays_to_the_bit(elect_signs, scale):
    base = torch.tensor([-0.0, 0.0, 0.1])
    merged = dare_merge([base, base], base=base, scale=scale, elect_signs=elect_signs)
    assert torch.equal(merged.view(torch.int32), base.view(torch.int32))


def test_the_class_is_its_function_with_the_same_draws_and_defaults():
    """No law compares them, because the function takes a generator."""
    base, *weights = torch.randn(4, 50, generator=seeded())
    merge = DARE(drop=0.3, scale=0.4, elect_signs=True)
    found = merge.tensor(weights, base=base, generator=seeded(3))
    expected = dare_merge(weights, base=base, drop=0.3, scale=0.4, elect_signs=True, generator=seeded(3))
    assert torch.equal(found, expected)
    ours, theirs = inspect.signature(DARE).parameters, inspect.signature(dare_merge).parameters
    assert [p.default for p in ours.values()] == [theirs[name].default for name in ours]


def write(folder, states):
    paths = [folder / f"{place}.safetensors" for place in range(len(states))]
    for path, state in zip(paths, states):
        save_file(state, path)
    return paths


def test_a_seed_gives_the_same_file_and_two_tensors_other_draws(tmp_path):
    ones = {"a": torch.ones(200), "b": torch.ones(200), "h": torch.ones(200).half()}
    zeros = {name: torch.zeros_like(value) for name, value in ones.items()}
    base, *paths = write(tmp_path, [zeros, ones, ones])
    out = tmp_path / "out.safetensors"
    first, again, other = (
        load_file(merge_checkpoints(paths, DARE(drop=0.5), out, base=base, seed=seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in ones)
    assert not torch.equal(first["a"], other["a"])
    assert not torch.equal(first["a"], first["b"])
    assert first["h"].dtype == torch.float16
    assert set(first["h"].tolist()) == {0.0, 2.0, 4.0}


def test_complex_numbers_are_dropped_as_a_whole():
    weights = [torch.full((200,), 1 + 2j)]
    merged = dare_merge(weights, base=torch.zeros(200, dtype=torch.complex64), drop=0.5, generator=seeded())
    assert set(merged.tolist()) == {0j, 2 + 4j}


@pytest.mark.parametrize("settings", [{"drop": 1.0}, {"drop": -0.1}, {"drop": math.nan}, {"scale": math.inf}], ids=str)
def test_settings_out_of_range_are_refused(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=rf"{name}=.* must be"):
        DARE(**settings)
    with pytest.raises(ValueError, match=rf"{name}=.* must be"):
        dare_merge([torch.ones(1)], base=torch.ones(1), **settings)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"weights=\[\] hold no network"):
        dare_merge([], base=torch.ones(2))
    with pytest.raises(ValueError, match=r"weights\[1\] of the shape \(1,\)"):
        dare_merge([torch.ones(2), torch.ones(1)], base=torch.ones(2))
    with pytest.raises(ValueError, match="DARE cannot merge without the base"):
        DARE().tensor([torch.ones(1)])
