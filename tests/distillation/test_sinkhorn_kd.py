import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from lightning_objectives.distillation import SinkhornKD, sinkhorn_kd


def draws(rows=6, classes=4):
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))


def cost_of(s, t, temperature=2.0):
    """All costs by a loop over pairs."""
    q, p = ((z / temperature).softmax(1).numpy() for z in (s, t))
    return np.array([[sum(abs(a - b) for a, b in zip(x, y)) for y in p] for x in q])


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.1, 20), (0.5, 3), (1.0, 1)])
def test_equals_plain_divisions(epsilon, iterations):
    """Rows first, so that the columns sum to one in the end."""
    s, t = draws()
    cost = cost_of(s, t)
    plan = np.exp(-cost / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    values = sinkhorn_kd(s, t, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(values, torch.from_numpy((plan * cost).sum(1)))


def test_by_hand():
    """W = ((0, 1), (1, 0)): of each row 1 and e^-2 by their sum, and the cost is e^-2 / (1 + e^-2)."""
    s = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log()
    values = sinkhorn_kd(s, s, temperature=1.0, epsilon=0.5)
    torch.testing.assert_close(values, torch.full((2,), 0.1192029))


def test_near_zero_epsilon_it_is_the_best_assignment():
    """By scipy; in float32 the plain divisions would be 0 by 0."""
    s, t = draws()
    cost = cost_of(s, t)
    rows, columns = linear_sum_assignment(cost)
    values = sinkhorn_kd(s.float(), t.float(), epsilon=1e-3, iterations=2000)
    torch.testing.assert_close(values.double(), torch.from_numpy(cost[rows, columns]), rtol=1e-3, atol=1e-3)


def test_at_a_great_epsilon_it_is_the_mean_over_all_pairs():
    s, t = draws()
    values = sinkhorn_kd(s, t, epsilon=1e6)
    torch.testing.assert_close(values, torch.from_numpy(cost_of(s, t).mean(1)), rtol=1e-4, atol=0)


def test_it_does_not_say_which_prediction_belongs_to_which():
    s, t = draws()
    torch.testing.assert_close(sinkhorn_kd(s.flip(0), t).mean(), sinkhorn_kd(s, t).mean())


def test_near_teachers_draw_the_student_to_their_middle():
    """p = 0.495, 0.5 and 0.505: an equal student pays more than one that predicts 0.5 three times."""
    p = torch.tensor([[0.495, 0.505], [0.5, 0.5], [0.505, 0.495]], dtype=torch.float64)
    middle = sinkhorn_kd(torch.zeros(3, 2, dtype=torch.float64), p.log(), temperature=1.0)
    torch.testing.assert_close(middle.mean(), torch.tensor(0.02 / 3, dtype=torch.float64))
    assert sinkhorn_kd(p.log(), p.log(), temperature=1.0).mean() > middle.mean()


def test_the_gradient_flows_through_the_plan():
    s, t = draws()
    assert torch.autograd.gradcheck(lambda z: sinkhorn_kd(z, t), s.requires_grad_())


def test_what_is_refused():
    s, t = draws()
    for settings in ({"temperature": 0.0}, {"epsilon": 0.0}, {"epsilon": float("nan")}, {"iterations": 0}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name}={settings[name]} must be >"):
            SinkhornKD(**settings)
        with pytest.raises(ValueError, match=f"{name}={settings[name]} must be >"):
            sinkhorn_kd(s, t, **settings)
    for tensors, words in (
        ((s, t[:1]), r"teacher_logits of the shape \(1, 4\)"),
        ((s, t[:, :1]), r"teacher_logits of the shape \(6, 1\)"),
        ((s[:, :1], t[:, :1]), "two or more"),
        ((s[0], t[0]), r"logits of the shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            sinkhorn_kd(*tensors)
