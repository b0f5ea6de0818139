import math

import pytest
import torch

from lightning_objectives.distillation import RKD, rkd_loss

S = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 1.0]], dtype=torch.float64)
T = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
DISTANCES, ANGLES = {"distance_weight": 1.0, "angle_weight": 0.0}, {"distance_weight": 0.0, "angle_weight": 1.0}


def draws(rows=5, size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64)


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def slow(s, t):
    """The distances and the angles of each row, pair by pair and triple by triple."""
    rows = range(len(s))

    def lengths(f):
        all_pairs = [[math.dist(f[i], f[j]) for j in rows] for i in rows]
        positive = [x for line in all_pairs for x in line if x > 0]
        return [[x / (sum(positive) / len(positive)) for x in line] for line in all_pairs]

    def cosine(f, i, j, k):
        if i in (j, k):
            return 0.0
        a, b = ([x - y for x, y in zip(f[m], f[i])] for m in (j, k))
        return sum(x * y for x, y in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))

    ours, theirs = lengths(s), lengths(t)
    distances = [sum(huber(ours[i][j] - theirs[i][j]) for j in rows) / len(s) for i in rows]
    angles = [
        sum(huber(cosine(s, i, j, k) - cosine(t, i, j, k)) for j in rows for k in rows) / len(s) ** 2 for i in rows
    ]
    return distances, angles


@pytest.mark.parametrize(("settings", "value"), [(DISTANCES, 0.057040), (ANGLES, 0.126670), ({}, 7.759495)], ids=str)
def test_numbers_of_another_implementation(settings, value):
    """torchdistill's gives the same."""
    assert rkd_loss(S, T, **settings).mean().item() == pytest.approx(value, abs=1e-6)


def test_equals_a_slow_loop_with_features_of_different_sizes():
    """A factor of 9 for one sample, so that some differences are beyond 1."""
    s, t = draws(size=3), draws(size=4, seed=1)
    s[0] *= 9
    distances, angles = (torch.tensor(part, dtype=torch.float64) for part in slow(s.tolist(), t.tolist()))
    torch.testing.assert_close(rkd_loss(s, t, **DISTANCES), distances)
    torch.testing.assert_close(rkd_loss(s, t, **ANGLES), angles)
    torch.testing.assert_close(rkd_loss(s, t, distance_weight=0.5, angle_weight=3.0), 0.5 * distances + 3 * angles)


def test_a_rotation_a_shift_and_a_scale_change_nothing():
    s, t = draws(), draws(seed=1)
    turned = 7 * s @ torch.linalg.qr(draws(3, 3, seed=2))[0] + 100
    torch.testing.assert_close(rkd_loss(turned, s), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(rkd_loss(turned, t), rkd_loss(s, t))


def test_one_sample_has_nothing_to_compare_and_two_have_equal_distances():
    one = draws(1).requires_grad_()
    values = rkd_loss(one, draws(1, seed=1))
    assert values.tolist() == [0.0]
    assert torch.autograd.grad(values.sum(), one)[0].tolist() == [[0.0, 0.0, 0.0]]
    assert rkd_loss(draws(2), draws(2, seed=1)).amax() < 1e-12


@pytest.mark.parametrize("apart", [0.0, 1e-7])
def test_samples_at_one_point_have_a_bounded_gradient(apart):
    """By a product of matrices it is in the order of 1e11, and of unit vectors in that of 1 / apart."""
    s = draws().float()
    s[1] = s[0] + apart
    s.requires_grad_()
    values = rkd_loss(s, draws(seed=1).float())
    (gradient,) = torch.autograd.grad(values.sum(), s)
    assert values.isfinite().all()
    assert 1 < gradient.abs().amax() < 1e3


def test_near_samples_far_from_the_origin_are_told_apart():
    """A product of matrices would lose them in float32."""
    s, t = draws(), draws(seed=1)
    torch.testing.assert_close(rkd_loss((s + 1e3).float(), t.float()), rkd_loss(s, t).float(), rtol=1e-2, atol=1e-2)


def test_autocast_does_not_round_the_angles():
    s, t = draws().float(), draws(seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = rkd_loss(s, t)
    assert torch.equal(inside, rkd_loss(s, t))
    assert rkd_loss(s.bfloat16(), t.bfloat16()).dtype is torch.float32


def test_what_is_refused():
    for settings in ({"distance_weight": -1.0}, {"angle_weight": float("nan")}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name}={settings[name]} must be >= 0"):
            RKD(**settings)
        with pytest.raises(ValueError, match=f"{name}={settings[name]} must be >= 0"):
            rkd_loss(S, T, **settings)
    with pytest.raises(ValueError, match=r"teacher_features of the shape \(1, 2\)"):
        rkd_loss(S, T[:1])
    with pytest.raises(ValueError, match=r"features of the shape \(2,\)"):
        rkd_loss(S[0], T)
    with pytest.raises(ValueError, match=r"features of the shape \(4, 2, 1\)"):
        rkd_loss(S[..., None], T)
