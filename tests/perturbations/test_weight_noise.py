"""What is drawn."""

import pytest
import torch

from lightning_objectives.perturbations import WeightNoise


def test_the_noise_has_its_standard_deviation():
    noise = WeightNoise(rho=0.5).offsets({}, {"w": torch.zeros(20_000)}, generator=torch.Generator().manual_seed(0))
    assert noise["w"].std().item() == pytest.approx(0.5, rel=0.02)
    assert noise["w"].mean().item() == pytest.approx(0, abs=0.015)


@pytest.mark.parametrize("rho", [-0.1, float("inf"), float("nan")])
def test_a_deviation_out_of_range_is_refused(rho):
    with pytest.raises(ValueError, match=f"rho={rho} must be finite and >= 0"):
        WeightNoise(rho=rho)
