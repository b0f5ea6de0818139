import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from lightning_objectives.distillation import VanillaKD, vanilla_kd


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_the_divergence_of_the_softened_distributions(temperature):
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    teacher, student = (Categorical(logits=x / temperature) for x in (t, s))
    expected = temperature**2 * kl_divergence(teacher, student)
    torch.testing.assert_close(vanilla_kd(s, t, temperature=temperature), expected, rtol=1e-9, atol=1e-12)


def test_at_high_temperature_it_is_the_squared_distance_of_centred_logits():
    """Hinton et al., equation 4: the gradient tends to (s - t) / (N C) for logits with mean zero."""
    s, t = torch.tensor([[1.0, -1.0, 0.0]]).double(), torch.tensor([[0.5, 0.5, -1.0]]).double()
    value = vanilla_kd(s, t, temperature=1e3)
    torch.testing.assert_close(value, (s - t).square().sum(1) / 6, rtol=1e-2, atol=0)


def test_the_student_alone_gets_a_gradient_in_bfloat16():
    s, t = (torch.tensor([x], dtype=torch.bfloat16, requires_grad=True) for x in ([1e4, 0.0], [0.0, 1e4]))
    value = vanilla_kd(s, t)
    torch.testing.assert_close(value, torch.tensor([4 * 1e4]), rtol=1e-2, atol=0)  # T² · 1e4 / T
    value.sum().backward()
    assert t.grad is None
    torch.testing.assert_close(s.grad.float(), torch.tensor([[4.0, -4.0]]))


def test_a_temperature_that_is_none():
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be > 0 and finite"):
        VanillaKD(temperature=0.0)
