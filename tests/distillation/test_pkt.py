import math

import pytest
import torch

from lightning_objectives.distillation import pkt_loss

S = torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 3.0], [4.0, 2.0]], dtype=torch.float64)
T = torch.tensor([[1.0, 1.0], [3.0, 1.0], [2.0, 2.0], [1.0, 4.0]], dtype=torch.float64)


def draws(rows=5, size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64)


def slow(f):
    """The probabilities of the neighbours of each row."""
    rows = [[1 + sum(x * y for x, y in zip(a, b)) / (math.hypot(*a) * math.hypot(*b)) for b in f] for a in f]
    return [[x / sum(row) for x in row] for row in rows]


def test_a_number_of_another_implementation():
    assert pkt_loss(S, T).mean().item() == pytest.approx(0.001105, abs=1e-6)


def test_equals_a_slow_loop():
    s, t = draws(size=3), draws(size=4, seed=1)
    expected = [
        sum(p * math.log((p + 1e-7) / (q + 1e-7)) for q, p in zip(ours, theirs)) / 5
        for ours, theirs in zip(slow(s.tolist()), slow(t.tolist()))
    ]
    torch.testing.assert_close(pkt_loss(s, t), torch.tensor(expected, dtype=torch.float64))


def test_a_factor_of_each_sample_and_a_rotation_change_nothing_and_a_shift_does():
    s = draws()
    factors = torch.tensor([[0.1], [1.0], [2.0], [30.0], [0.5]], dtype=torch.float64)
    turned = factors * s @ torch.linalg.qr(draws(3, 3, seed=2))[0]
    torch.testing.assert_close(pkt_loss(turned, s), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (pkt_loss(s + 1, s) > 1e-4).all()


def test_one_sample_has_nothing_to_compare():
    one = draws(1).requires_grad_()
    values = pkt_loss(one, draws(1, seed=1))
    assert values.tolist() == [0.0]
    assert torch.autograd.grad(values.sum(), one)[0].abs().amax() < 1e-12


def test_opposite_samples_are_finite():
    """The student finds the first two impossible as neighbours, the teacher finds them alike: log of 1 / epsilon."""
    s = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [3.0, -1.0]], requires_grad=True)
    t = torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 5.0]])
    values = pkt_loss(s, t)
    assert values.isfinite().all()
    assert 1 < values[0] < math.log(1e7)
    assert torch.autograd.grad(values.sum(), s)[0].isfinite().all()
    assert pkt_loss(t, s).isfinite().all()


def test_a_cosine_that_is_rounded_below_minus_one():
    """Some of these are -1.0000004 in float32, whose probability with epsilon would have no logarithm."""
    for seed in range(100):
        s = draws(1, 4096, seed).float()
        assert pkt_loss(torch.cat([s, -3 * s]), torch.cat([s, s])).isfinite().all()


def test_a_row_of_zeros_has_all_neighbours_alike_and_no_gradient():
    s, t = draws().float(), draws(seed=1).float()
    s[2] = 0
    s.requires_grad_()
    p = torch.tensor(slow(t.tolist()))[2]
    values = pkt_loss(s, t)
    assert values[2].item() == pytest.approx((p * (5 * p).log()).mean().item(), abs=1e-6)
    (gradient,) = torch.autograd.grad(values.sum(), s)
    assert gradient[2].tolist() == [0.0] * 3
    assert gradient[0].abs().amax() > 0


def test_autocast_does_not_round_the_cosines():
    s, t = draws().float(), draws(seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = pkt_loss(s, t)
    assert torch.equal(inside, pkt_loss(s, t))
    assert pkt_loss(s.bfloat16(), t.bfloat16()).dtype is torch.float32


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"teacher_features of the shape \(1, 2\)"):
        pkt_loss(S, T[:1])
    with pytest.raises(ValueError, match=r"features of the shape \(2,\)"):
        pkt_loss(S[0], T)
    with pytest.raises(ValueError, match=r"features of the shape \(4, 2, 1\)"):
        pkt_loss(S[..., None], T)
