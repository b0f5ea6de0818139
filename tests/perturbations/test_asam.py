"""A number by hand, and the scales that the offset is invariant to."""

import pytest
import torch

from lightning_objectives.perturbations import ASAM, asam_offsets, sam_offsets

W = torch.tensor([1.0, -2.0], dtype=torch.float64)


def gradient(w):
    """Of x^4 / 4 + x y + y^2."""
    return torch.stack([w[0] ** 3 + w[1], w[0] + 2 * w[1]])


def test_the_gradient_at_the_moved_weights():
    """Of a quartic, computed by hand."""
    (offset,) = ASAM().offsets({"weight": gradient(W)}, {"weight": W}).values()
    expected = torch.tensor([-2.221164, -5.065808], dtype=torch.float64)
    torch.testing.assert_close(gradient(W + offset), expected, rtol=1e-6, atol=1e-6)


def test_without_eta_the_scales_of_the_layers_do_not_matter():
    """w1 -> k w1 and w2 -> w2 / k leave a product of two layers as it is: gradients scale the other way."""
    k, params = 8.0, {"1.weight": W, "2.weight": W.flip(0)}
    gradients = {"1.weight": gradient(W), "2.weight": gradient(W.flip(0))}
    plain = asam_offsets({n: g.clone() for n, g in gradients.items()}, params, eta=0.0)
    scaled = asam_offsets(
        {"1.weight": gradients["1.weight"] / k, "2.weight": gradients["2.weight"] * k},
        {"1.weight": params["1.weight"] * k, "2.weight": params["2.weight"] / k},
        eta=0.0,
    )
    torch.testing.assert_close(scaled["1.weight"] / k, plain["1.weight"])
    torch.testing.assert_close(scaled["2.weight"] * k, plain["2.weight"])


def test_biases_move_as_under_sam():
    ours = asam_offsets({"bias": gradient(W)}, {"bias": W}, rho=0.3, eta=7.0)
    torch.testing.assert_close(ours, sam_offsets({"bias": gradient(W)}, {"bias": W}, rho=0.3))


def test_a_weight_of_zero_moves_by_eta():
    offsets = asam_offsets({"weight": torch.ones(2)}, {"weight": torch.zeros(2)}, rho=1.0, eta=0.1)
    torch.testing.assert_close(offsets["weight"], torch.full((2,), 0.1 / 2**0.5))


@pytest.mark.parametrize("name", ["eta", "rho"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be finite and >= 0"):
        ASAM(**{name: value})
