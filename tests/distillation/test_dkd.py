import math

import pytest
import torch

from lightning_objectives.distillation import DKD, dkd, vanilla_kd

S = torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.5, 0.0, -0.5, 3.0]], dtype=torch.float64)
T = torch.tensor([[2.0, 1.0, 0.0, -2.0], [0.0, 1.0, -1.0, 2.0]], dtype=torch.float64)
Y = torch.tensor([0, 3])


def draws(classes=5):
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(6, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return s, t, torch.arange(6) % classes


def slow(s, t, y, temperature):
    """The two parts of one row, from probabilities."""
    p, q = (
        [math.exp(z / temperature) / sum(math.exp(other / temperature) for other in row) for z in row] for row in (t, s)
    )
    target = p[y] * math.log(p[y] / q[y]) + (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
    rest = [k for k in range(len(p)) if k != y]
    others = sum(p[k] / (1 - p[y]) * math.log(p[k] / (1 - p[y]) * (1 - q[y]) / q[k]) for k in rest)
    return temperature**2 * target, temperature**2 * others


def test_numbers_of_another_implementation():
    """Both parts and their usual sum, from the formula in float64 by other code."""
    for settings, value in (
        ({"beta": 0.0}, 0.222111),
        ({"alpha": 0.0, "beta": 1.0}, 0.188511),
        ({}, 1.730197),
    ):
        assert dkd(S, T, Y, **settings).mean().item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_a_slow_loop(temperature):
    s, t, y = draws()
    parts = [slow(*row, temperature) for row in zip(s.tolist(), t.tolist(), y.tolist())]
    expected = torch.tensor([0.5 * a + 3.0 * b for a, b in parts], dtype=torch.float64)
    torch.testing.assert_close(dkd(s, t, y, alpha=0.5, beta=3.0, temperature=temperature), expected)


def test_with_the_share_of_the_other_classes_it_is_plain_distillation():
    """KD = TCKD + (1 - p_y) NCKD, for each row."""
    s, t, y = draws()
    share = 1 - (t / 4).softmax(1).gather(1, y[:, None])[:, 0]
    value = dkd(s, t, y, beta=0.0) + share * dkd(s, t, y, alpha=0.0, beta=1.0)
    torch.testing.assert_close(value, vanilla_kd(s, t, temperature=4.0))


def test_with_two_classes_only_the_target_counts():
    s, t, y = draws(classes=2)
    assert dkd(s, t, y, alpha=0.0).tolist() == [0.0] * 6
    torch.testing.assert_close(dkd(s, t, y), vanilla_kd(s, t, temperature=4.0))


def test_a_shift_of_a_row_changes_nothing():
    s, t, y = draws()
    shift = torch.arange(6.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(dkd(s + shift, t - 2 * shift, y), dkd(s, t, y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_finite_where_the_released_code_is_infinite(dtype):
    """With T = 4, of the target 2/3 · 2500 - H(1/3) and 2500 - log 2, of the others 1250 - log 2 and 2500."""
    s = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    t = torch.tensor([[0.0, 0.0, 0.0], [1e4, 0.0, 1e4]], dtype=dtype)
    values = dkd(s, t, torch.tensor([0, 0]))
    assert values.dtype is torch.float32
    entropy = -math.log(1 / 3) / 3 - 2 * math.log(2 / 3) / 3
    targets, others = (5000 / 3 - entropy, 2500 - math.log(2)), (1250 - math.log(2), 2500.0)
    expected = [16 * (a + 8 * b) for a, b in zip(targets, others)]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=2e-3, atol=0)
    values.sum().backward()
    assert s.grad.isfinite().all()
    assert s.grad.abs().amax(1).gt(1).all()


def test_probabilities_count_as_their_most_probable_class():
    s, t, y = draws()
    mixed = 0.7 * torch.nn.functional.one_hot(y, 5) + 0.3 * torch.nn.functional.one_hot((y + 1) % 5, 5)
    assert torch.equal(dkd(s, t, mixed), dkd(s, t, y))


@pytest.mark.parametrize("none", [-100, -1, 5, 255])
def test_a_row_without_a_class_has_no_distance(none):
    s, t, y = draws()
    expected = dkd(s, t, y)
    expected[2] = 0
    y[2] = none
    s.requires_grad_()
    values = dkd(s, t, y)
    assert torch.equal(values, expected)
    (gradient,) = torch.autograd.grad(values.sum(), s)
    assert gradient[2].tolist() == [0.0] * 5
    assert gradient[1].abs().sum() > 0


def test_what_is_refused():
    for settings in ({"alpha": -1.0}, {"beta": float("nan")}, {"temperature": 0.0}, {"temperature": float("inf")}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name}={settings[name]} must be >"):
            DKD(**settings)
        with pytest.raises(ValueError, match=f"{name}={settings[name]} must be >"):
            dkd(S, T, Y, **settings)
    for s, t, y, words in (
        (S, T[:1], Y, r"teacher_logits of the shape \(1, 4\)"),
        (S, T[:, :3], Y, r"teacher_logits of the shape \(2, 3\)"),
        (S, T, Y[:1], r"target of the shape \(1,\)"),
        (S[:, :1], T[:, :1], Y, "two or more"),
        (S[0], T[0], Y[0], r"logits of the shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            dkd(s, t, y)
