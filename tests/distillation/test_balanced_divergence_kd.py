import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.distillation import BalancedDivergenceKD, balanced_divergence_kd, vanilla_kd


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a)


def entropy(p):
    return -sum(a * math.log(a) for a in p if a)


def softmax(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def test_by_hand():
    """KL((.9, .1), (.5, .5)) = 0.368064 and KL((.5, .5), (.9, .1)) = 0.510826; the even one is the less sure."""
    sure, even = torch.tensor([[0.9, 0.1]]).log(), torch.zeros(1, 2)
    of_even = balanced_divergence_kd(even, sure, surer=(5.0, 7.0), less_sure=(1.0, 3.0), temperature=1.0)
    torch.testing.assert_close(of_even, torch.tensor([0.368064 + 3 * 0.510826]), rtol=1e-5, atol=0)
    of_sure = balanced_divergence_kd(sure, even, surer=(5.0, 7.0), less_sure=(1.0, 3.0), temperature=1.0)
    torch.testing.assert_close(of_sure, torch.tensor([5 * 0.510826 + 7 * 0.368064]), rtol=1e-5, atol=0)


def test_equals_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 30, 5, generator=generator, dtype=torch.float64)
    expected, surer = [], 0
    for s, t in zip(student.tolist(), teacher.tolist()):
        q, p = softmax(s, 2.5), softmax(t, 2.5)
        forward, reverse = (2, 1) if entropy(q) < entropy(p) else (1, 2)
        surer += forward == 2
        expected.append(2.5**2 * (forward * kl(p, q) + reverse * kl(q, p)))
    assert 5 < surer < 25
    values = balanced_divergence_kd(student, teacher, temperature=2.5)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_with_the_forward_divergence_alone_it_is_vanilla_kd():
    student, teacher = torch.randn(2, 6, 4)
    values = balanced_divergence_kd(student, teacher, surer=(1.0, 0.0), less_sure=(1.0, 0.0))
    torch.testing.assert_close(values, vanilla_kd(student, teacher))


def test_the_weights_are_constants():
    """The gradient is that of the two divergences, and none flows to the teacher."""
    student, teacher = torch.randn(2, 8, 4, dtype=torch.float64)
    student.requires_grad_()
    teacher.requires_grad_()
    (slope,) = torch.autograd.grad(balanced_divergence_kd(student, teacher, temperature=1.0).sum(), student)
    q, p = student.softmax(1), teacher.softmax(1).detach()
    weights = torch.tensor(
        [(2.0, 1.0) if entropy(a) < entropy(b) else (1.0, 2.0) for a, b in zip(q.tolist(), p.tolist())]
    )
    both = [F.kl_div(q.log(), p, reduction="none").sum(1), F.kl_div(p.log(), q, reduction="none").sum(1)]
    expected = torch.autograd.grad((weights[:, 0] * both[0] + weights[:, 1] * both[1]).sum(), student)[0]
    torch.testing.assert_close(slope, expected)
    assert not balanced_divergence_kd(student.detach(), teacher).requires_grad


def test_the_divergence_with_the_stronger_gradient_gets_the_greater_weight():
    """The forward one where the student is too sure, the reverse one where it is not sure enough."""
    sure, less = torch.tensor([[0.99, 0.01]]).log(), torch.tensor([[0.7, 0.3]]).log()
    for student, teacher in ((sure, less), (less, sure)):
        slopes = []
        for weights in ((1.0, 0.0), (0.0, 1.0)):
            moved = student.clone().requires_grad_()
            value = balanced_divergence_kd(moved, teacher, surer=weights, less_sure=weights, temperature=1.0)
            slopes.append(torch.autograd.grad(value, moved)[0][0, 0].abs().item())
        forward, reverse = slopes
        settings = BalancedDivergenceKD().settings()
        if student is sure:
            assert forward > 5 * reverse > 0
            assert settings["surer"][0] > settings["surer"][1]
        else:
            assert reverse > 2 * forward > 0
            assert settings["less_sure"][1] > settings["less_sure"][0]


def test_certain_networks_stay_finite():
    student = torch.tensor([[1e4, -1e4], [0.0, 0.0], [1e4, -1e4]], requires_grad=True)
    values = balanced_divergence_kd(student, torch.tensor([[-1e4, 1e4], [1e4, -1e4], [1e4, -1e4]]))
    values.sum().backward()
    assert values.isfinite().all()
    assert values[2] == 0
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"surer": (-1.0, 1.0)}, r"surer=\(-1\.0, 1\.0\) must be two numbers >= 0 and finite"),
        ({"less_sure": (1.0,)}, r"less_sure=\(1\.0,\) must be two numbers"),
        ({"less_sure": (1.0, math.nan)}, r"less_sure=\(1\.0, nan\) must be two numbers"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be > 0 and finite"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        BalancedDivergenceKD(**settings)
