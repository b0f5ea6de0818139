import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_objectives.merging import TaskArithmetic, merge_checkpoints, task_arithmetic_merge

TAU = torch.tensor(
    [
        [0.9, -0.1, 0.3, -0.4, 0.05, 0.2],
        [-0.5, 0.6, 0.1, 0.35, -0.02, 0.25],
        [0.2, -0.7, -0.15, 0.1, 0.4, -0.45],
    ]
)


def test_worked_by_hand():
    """0.4 times the sums 0.6, -0.2, 0.25, 0.05, 0.43 and 0."""
    merged = task_arithmetic_merge([*TAU], base=torch.zeros(6), scale=0.4)
    torch.testing.assert_close(merged, torch.tensor([0.24, -0.08, 0.1, 0.02, 0.172, 0.0]), rtol=0, atol=1e-7)


def test_it_is_the_slow_loop():
    generator = torch.Generator().manual_seed(0)
    base, *weights = torch.randn(4, 20, generator=generator, dtype=torch.float64)
    merged = task_arithmetic_merge(weights, base=base, scale=0.7)
    for j in range(20):
        expected = base[j].item() + 0.7 * math.fsum(w[j].item() - base[j].item() for w in weights)
        assert merged[j].item() == pytest.approx(expected, abs=1e-14)


def test_one_network_at_scale_one_is_that_network_and_at_minus_one_its_reflection():
    base, weight = torch.randn(2, 50)
    torch.testing.assert_close(task_arithmetic_merge([weight], base=base, scale=1.0), weight)
    torch.testing.assert_close(task_arithmetic_merge([weight], base=base, scale=-1.0), 2 * base - weight)
    assert torch.equal(task_arithmetic_merge([weight], base=base, scale=0.0), base)


def test_a_share_of_each_is_their_mean():
    base, *weights = torch.randn(5, 50)
    merged = task_arithmetic_merge(weights, base=base, scale=0.25)
    torch.testing.assert_close(merged, torch.stack(weights).mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.4, -0.4])
def test_what_nobody_changed_stays_to_the_bit(scale):
    base = torch.tensor([-0.0, 0.0, 0.1])
    merged = task_arithmetic_merge([base, base], base=base, scale=scale)
    assert torch.equal(merged.view(torch.int32), base.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_merged_in_float32(dtype):
    base, *weights = torch.randn(4, 100).to(dtype)
    merged = task_arithmetic_merge(weights, base=base)
    assert merged.dtype == torch.float32
    assert torch.equal(merged, task_arithmetic_merge([w.float() for w in weights], base=base.float()))


def test_complex_weights_are_pairs():
    weights = torch.view_as_complex(TAU.view(3, 3, 2))
    merged = task_arithmetic_merge([*weights], base=torch.zeros(3, dtype=torch.complex64))
    assert torch.equal(torch.view_as_real(merged).flatten(), task_arithmetic_merge([*TAU], base=torch.zeros(6)))


def test_files(tmp_path):
    """More than one piece, a buffer of which the mean is taken, and a whole number."""
    base, *states = [{"w": torch.randn(40_000), "var": torch.rand(3), "n": torch.tensor(place)} for place in range(3)]
    paths = [tmp_path / f"{place}.safetensors" for place in range(3)]
    for path, state in zip(paths, [base, *states]):
        save_file(state, path)
    out = tmp_path / "out.safetensors"
    merged = load_file(merge_checkpoints(paths[1:], TaskArithmetic(scale=0.3), out, base=paths[0], buffers=["var"]))
    expected = base["w"] + 0.3 * (states[0]["w"] + states[1]["w"] - 2 * base["w"])
    torch.testing.assert_close(merged["w"], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(merged["var"], (states[0]["var"] + states[1]["var"]) / 2)
    assert merged["n"] == 2


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_not_finite_is_refused(scale):
    with pytest.raises(ValueError, match=r"scale=.* must be finite"):
        TaskArithmetic(scale=scale)
    with pytest.raises(ValueError, match=r"scale=.* must be finite"):
        task_arithmetic_merge([torch.ones(1)], base=torch.ones(1), scale=scale)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"weights=\[\] hold no network"):
        task_arithmetic_merge([], base=torch.ones(2))
    with pytest.raises(ValueError, match=r"weights\[1\] of the shape \(1,\)"):
        task_arithmetic_merge([torch.ones(2), torch.ones(1)], base=torch.ones(2))
    with pytest.raises(ValueError, match="TaskArithmetic cannot merge without the base"):
        TaskArithmetic().tensor([torch.ones(1)])
