"""A number by hand, and what the offset depends on."""

import pytest
import torch

from lightning_objectives.perturbations import SAM, sam_offsets

W = torch.tensor([1.0, -2.0], dtype=torch.float64)


def gradient(w):
    """Of x^4 / 4 + x y + y^2."""
    return torch.stack([w[0] ** 3 + w[1], w[0] + 2 * w[1]])


def test_the_gradient_at_the_moved_weights():
    """Of a quartic, computed by hand."""
    (offset,) = SAM(rho=0.5).offsets({"weight": gradient(W)}, {"weight": W}).values()
    expected = torch.tensor([-1.877636, -4.106797], dtype=torch.float64)
    torch.testing.assert_close(gradient(W + offset), expected, rtol=1e-6, atol=1e-6)


def test_the_norm_is_that_of_all_parameters():
    offsets = sam_offsets({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, {"a": W[:1], "b": W[:1]}, rho=1.0)
    assert offsets["a"].item() == pytest.approx(0.6)
    assert offsets["b"].item() == pytest.approx(0.8)


def test_a_long_gradient_in_half_precision_does_not_overflow():
    """Its squares would: 300 squared times 400 is beyond float16."""
    offsets = sam_offsets({"a": torch.full((400,), 300.0, dtype=torch.float16)}, {"a": torch.zeros(400)}, rho=1.0)
    torch.testing.assert_close(offsets["a"], torch.full((400,), 0.05, dtype=torch.float16), rtol=1e-3, atol=0)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_the_direction_alone_counts(factor):
    ours = sam_offsets({"w": factor * gradient(W)}, {"w": W})
    torch.testing.assert_close(ours, sam_offsets({"w": gradient(W)}, {"w": W}))


@pytest.mark.parametrize("rho", [-0.1, float("inf"), float("nan")])
def test_a_length_out_of_range_is_refused(rho):
    with pytest.raises(ValueError, match=f"rho={rho} must be finite and >= 0"):
        SAM(rho=rho)
