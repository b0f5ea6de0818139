import itertools
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_objectives.merging import ModelStock, merge_checkpoints, model_stock_merge


def test_worked_by_hand():
    """Changes (1, 0, 1) and (0, 2, 1): the cosine is 1 / sqrt(2 · 5) = 0.316228, t = 2 · 0.316228 / 1.316228."""
    weights = [torch.tensor([2.0, 1.0, 1.0]), torch.tensor([1.0, 3.0, 1.0])]
    merged = model_stock_merge(weights, base=torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(merged, torch.tensor([1.240253, 1.480506, 0.480506]), rtol=0, atol=1e-6)


def slow(weights, base):
    """Pair by pair."""
    changes = [[w - b for w, b in zip(weight, base)] for weight in weights]
    cosines = [
        math.fsum(a * b for a, b in zip(one, two)) / math.hypot(*one) / math.hypot(*two)
        for one, two in itertools.combinations(changes, 2)
    ]
    cosine, count = math.fsum(cosines) / len(cosines), len(weights)
    share = count * cosine / (1 + (count - 1) * cosine)
    return [share * math.fsum(ws) / count + (1 - share) * b for *ws, b in zip(*weights, base)]


@pytest.mark.parametrize("count", [2, 3, 6])
def test_it_is_the_slow_loop_over_pairs(count):
    generator = torch.Generator().manual_seed(count)
    base, centre = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    weights = [centre + 0.8 * torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(count)]
    expected = slow([w.flatten().tolist() for w in weights], base.flatten().tolist())
    found = model_stock_merge(weights, base=base).flatten()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_it_is_the_foot_of_the_perpendicular_from_the_centre():
    """For changes of equal length and angle to each other: c + r e_k, from which the base 0 is seen."""
    centre = torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    weights = [centre + 2 * torch.eye(4, dtype=torch.float64)[k] for k in (1, 2, 3)]
    merged = model_stock_merge(weights, base=torch.zeros(4, dtype=torch.float64))
    mean = torch.stack(weights).mean(0)
    foot = mean * (centre @ mean) / (mean @ mean)
    torch.testing.assert_close(merged, foot)


def test_equal_networks_are_that_network_and_right_angles_leave_the_base():
    base, weight = torch.randn(2, 30)
    torch.testing.assert_close(model_stock_merge([weight] * 3, base=base), weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(model_stock_merge([weight], base=base), weight, rtol=0, atol=1e-6)
    corner = [torch.tensor([2.0, 1.0]), torch.tensor([1.0, 5.0])]
    assert model_stock_merge(corner, base=torch.ones(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("other", [-2.0, -1.0])
def test_opposite_changes_leave_the_base(other):
    """The cosine is -1, where the formula gives t = 2 · (-1) / 0."""
    base = torch.tensor([1.0, -0.0])
    weights = [base + torch.tensor([1.0, 1.0]), base + other * torch.tensor([1.0, 1.0])]
    assert torch.equal(model_stock_merge(weights, base=base), base)
    three = [torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([-1.0])]  # cosines 1, -1 and -1: t = -1 / (1/3)
    assert model_stock_merge(three, base=torch.zeros(1)).tolist() == [0.0]


def test_what_nobody_changed_stays_to_the_bit():
    base = torch.tensor([-0.0, 0.0, math.inf, 0.1])
    assert torch.equal(model_stock_merge([base] * 2, base=base).view(torch.int32), base.view(torch.int32))
    moved = base + torch.tensor([0.0, 0.0, 0.0, 1.0])
    found = model_stock_merge([moved] * 2, base=base)
    assert torch.equal(found[:3].view(torch.int32), base[:3].view(torch.int32))
    assert found[3] == pytest.approx(1.1)


def test_a_network_that_has_not_changed_is_at_a_right_angle():
    """The cosines are 1, 0 and 0: their mean is 1/3, t = 3/5, of the mean 2/3."""
    base, weight = torch.zeros(3), torch.ones(3)
    found = model_stock_merge([weight, base, weight], base=base)
    torch.testing.assert_close(found, torch.full((3,), 0.4))


def test_complex_weights_are_pairs_and_halves_are_merged_in_float32():
    base, *weights = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)) + torch.arange(3.0)[:, None].sign()
    pairs = [torch.view_as_complex(t.view(4, 2)) for t in (base, *weights)]
    found = model_stock_merge(pairs[1:], base=pairs[0])
    torch.testing.assert_close(torch.view_as_real(found).flatten(), model_stock_merge(weights, base=base))
    halves = model_stock_merge([w.half() for w in weights], base=base.half())
    assert halves.dtype == torch.float32
    assert not torch.equal(halves, base.half().float()), "they agree in part"


def test_each_tensor_of_files_has_its_own_angle(tmp_path):
    states = [
        {"a": torch.zeros(2), "b": torch.zeros(2)},
        {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0, 0.0])},
        {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([1.0, 0.0])},
    ]
    paths = [tmp_path / f"{place}.safetensors" for place in range(3)]
    for path, state in zip(paths, states):
        save_file(state, path)
    merged = load_file(merge_checkpoints(paths[1:], ModelStock(), tmp_path / "out.safetensors", base=paths[0]))
    assert merged["a"].tolist() == [0.0, 0.0]
    assert merged["b"].tolist() == [1.0, 0.0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"weights=\[\] hold no network"):
        model_stock_merge([], base=torch.ones(2))
    with pytest.raises(ValueError, match=r"weights\[1\] of the shape \(1,\)"):
        model_stock_merge([torch.ones(2), torch.ones(1)], base=torch.ones(2))
    with pytest.raises(ValueError, match="ModelStock cannot merge without the base"):
        ModelStock().tensor([torch.ones(1)])
