import math

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from lightning_objectives.distillation import BinaryKL, binary_kl


def logits(seed, scale=3.0):
    return scale * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_it_is_the_divergence_of_bernoullis(temperature):
    s, t = logits(0), logits(1)
    teacher, student = (Bernoulli(logits=x / temperature) for x in (t, s))
    expected = temperature**2 * kl_divergence(teacher, student).sum(1)
    torch.testing.assert_close(binary_kl(s, t, temperature=temperature), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_normalized_by_a_slow_loop_over_both_terms_and_in_closed_form(temperature):
    s, t = logits(0), logits(1)
    expected, closed = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for n in range(5):
        for k in range(7):
            u = (s[n, k] - t[n, k]).item() / temperature
            p = 1 / (1 + math.exp(-u))
            expected[n] += temperature**2 * (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
            closed[n] += temperature**2 * math.log(math.cosh(u / 2))
    values = binary_kl(s, t, temperature=temperature, normalize=True)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(values, closed, rtol=0, atol=1e-6)


def test_the_gradients_of_the_paper():
    s, t = logits(0).requires_grad_(), logits(1)
    (normalized,) = torch.autograd.grad(binary_kl(s, t, temperature=2.0, normalize=True).mean(), s)
    torch.testing.assert_close(normalized, 2 / (2 * 5) * ((s - t) / 4).tanh())  # T / (2N) tanh((s - t) / (2T))
    (plain,) = torch.autograd.grad(binary_kl(s, t, temperature=2.0).mean(), s)
    torch.testing.assert_close(plain, 2 / 5 * ((s / 2).sigmoid() - (t / 2).sigmoid()))  # T / N (sig(s/T) - sig(t/T))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gap", [36.0, 1e3, 1e4])
@pytest.mark.parametrize("normalize", [False, True])
def test_far_from_the_teacher_it_is_finite_and_still_pulls(dtype, gap, normalize):
    s = torch.tensor([[gap, -gap]], dtype=dtype, requires_grad=True)
    value = binary_kl(s, torch.tensor([[-gap, gap]], dtype=dtype), normalize=normalize)
    assert value.dtype is torch.float32
    # 2 T |s - t| / 2 - 2 T² log 2, and T |s - t| without the constant
    u = 2 * s.detach()[0, 0].item()
    expected = 2 * u - 8 * math.log(2) if normalize else 2 * 2 * u / 2
    torch.testing.assert_close(value, torch.tensor([expected]), rtol=1e-5, atol=1e-3)
    value.sum().backward()
    size = 1.0 if normalize else 2.0
    torch.testing.assert_close(s.grad.float(), torch.tensor([[size, -size]]), rtol=1e-2, atol=0)


def test_the_normalized_curvature_does_not_depend_on_the_teacher():
    teacher = torch.tensor([[-5.0], [0.0], [5.0]], dtype=torch.float64)
    values = binary_kl(teacher + 0.02, teacher, normalize=True)
    torch.testing.assert_close(values, torch.full((3,), 0.02**2 / 8, dtype=torch.float64), rtol=1e-4, atol=0)
    plain = binary_kl(teacher + 0.02, teacher)
    assert plain[1] > 2 * plain[0]


def test_a_temperature_that_is_none():
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="must be > 0 and finite"):
            BinaryKL(temperature=temperature)
        with pytest.raises(ValueError, match="must be > 0 and finite"):
            binary_kl(torch.zeros(1, 1), torch.zeros(1, 1), temperature=temperature)
