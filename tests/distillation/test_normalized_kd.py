import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.distillation import NormalizedKD, normalized_kd


def draws(classes=5):
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(6, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return s, t, torch.arange(6) % classes


def test_by_hand():
    """p_y = 0.6 and q_y = 0.3; the others are 3/4, 1/4 of the teacher and 2/7, 5/7 of the student."""
    t, s = torch.tensor([[0.3, 0.6, 0.1]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    of_target = -0.6 * math.log(0.3)
    of_others = -(0.75 * math.log(2 / 7) + 0.25 * math.log(5 / 7))
    value = normalized_kd(s, t, torch.tensor([1]))
    torch.testing.assert_close(value, torch.tensor([of_target + 1.5 * of_others]))


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (3.5, 3.0)])
def test_equals_a_slow_loop(gamma, temperature):
    """The target's part has no temperature, the others' part has, with its square."""
    s, t, y = draws()
    expected = []
    for a, b, k in zip(s, t, y.tolist()):
        rest = [j for j in range(5) if j != k]
        others = F.cross_entropy(a[rest][None] / temperature, (b[rest] / temperature).softmax(0)[None])
        expected.append(b.softmax(0)[k] * F.cross_entropy(a, torch.tensor(k)) + gamma * temperature**2 * others)
    torch.testing.assert_close(normalized_kd(s, t, y, gamma=gamma, temperature=temperature), torch.stack(expected))


def test_the_others_part_has_no_slope_at_the_teacher_and_the_targets_part_has():
    _, t, y = draws()
    s = t.clone().requires_grad_()
    (target,) = torch.autograd.grad(normalized_kd(s, t, y, gamma=0.0).sum(), s)
    (whole,) = torch.autograd.grad(normalized_kd(s, t, y, temperature=3.0).sum(), s)
    torch.testing.assert_close(whole, target)
    p = t.softmax(1)
    torch.testing.assert_close(target, p.gather(1, y[:, None]) * (p - F.one_hot(y, 5)))


def test_with_two_classes_only_the_target_counts():
    s, t, y = draws(classes=2)
    expected = t.softmax(1).gather(1, y[:, None])[:, 0] * F.cross_entropy(s, y, reduction="none")
    torch.testing.assert_close(normalized_kd(s, t, y), expected)


def test_a_sure_teacher_gives_the_cross_entropy():
    s, _, y = draws()
    torch.testing.assert_close(
        normalized_kd(s, 1e3 * F.one_hot(y, 5).double(), y, gamma=0.0), F.cross_entropy(s, y, reduction="none")
    )


def test_probabilities_count_as_their_most_probable_class():
    s, t, y = draws()
    mixed = 0.7 * F.one_hot(y, 5) + 0.3 * F.one_hot((y + 1) % 5, 5)
    assert torch.equal(normalized_kd(s, t, mixed), normalized_kd(s, t, y))


@pytest.mark.parametrize("none", [-100, 5])
def test_a_row_without_a_class_has_no_term(none):
    s, t, y = draws()
    expected = normalized_kd(s, t, y)
    expected[2] = 0
    y[2] = none
    assert torch.equal(normalized_kd(s, t, y), expected)


def test_what_is_refused():
    s, t, y = draws()
    for settings in ({"gamma": -1.0}, {"gamma": float("inf")}, {"temperature": 0.0}, {"temperature": float("nan")}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name}={settings[name]} must be >"):
            NormalizedKD(**settings)
        with pytest.raises(ValueError, match=f"{name}={settings[name]} must be >"):
            normalized_kd(s, t, y, **settings)
    for tensors, words in (
        ((s, t[:1], y), r"teacher_logits of the shape \(1, 5\)"),
        ((s, t, y[:1]), r"target of the shape \(1,\)"),
        ((s[:, :1], t[:, :1], y), "two or more"),
        ((s[0], t[0], y[0]), r"logits of the shape \(5,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            normalized_kd(*tensors)
