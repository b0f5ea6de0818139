import math

import pytest
import torch

from lightning_objectives.distillation import similarity_preserving_loss

S = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0], [2.0, 2.0, 0.0]], dtype=torch.float64)
T = torch.tensor([[1.0, 1.0], [0.0, 2.0], [3.0, 0.5]], dtype=torch.float64)


def draws(rows=5, size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64)


def slow(f):
    """The rows of similarities, each by its length."""
    rows = [[sum(x * y for x, y in zip(a, b)) for b in f] for a in f]
    return [[x / math.hypot(*row) for x in row] for row in rows]


def test_a_number_of_another_implementation():
    """torchdistill's is wrong here: it divides the rows by their sums of sizes, not by their lengths."""
    assert similarity_preserving_loss(S, T).mean().item() == pytest.approx(0.071488, abs=1e-6)


def test_equals_a_slow_loop():
    s, t = draws(size=3), draws(size=4, seed=1)
    expected = [
        sum((x - y) ** 2 for x, y in zip(ours, theirs)) / 5 for ours, theirs in zip(slow(s.tolist()), slow(t.tolist()))
    ]
    torch.testing.assert_close(similarity_preserving_loss(s, t), torch.tensor(expected, dtype=torch.float64))


def test_a_rotation_and_a_scale_change_nothing_and_a_shift_does():
    s = draws()
    turned = 7 * s @ torch.linalg.qr(draws(3, 3, seed=2))[0]
    torch.testing.assert_close(similarity_preserving_loss(turned, s), torch.zeros(5, dtype=torch.float64))
    assert (similarity_preserving_loss(s + 1, s) > 0.01).all()


def test_one_sample_has_nothing_to_compare():
    one = draws(1).requires_grad_()
    values = similarity_preserving_loss(one, draws(1, seed=1))
    assert values.abs().item() < 1e-15
    assert torch.autograd.grad(values.sum(), one)[0].abs().amax() < 1e-12


def test_a_row_of_zeros_is_similar_to_nothing_and_has_no_gradient():
    """The others are compared without it; an epsilon of 1e-12 would give it a gradient of 1e12."""
    s, t = draws().float(), draws(seed=1).float()
    s[2] = 0
    s.requires_grad_()
    values = similarity_preserving_loss(s, t)
    assert values[2].item() == pytest.approx(1 / 5)
    (gradient,) = torch.autograd.grad(values.sum(), s)
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().amax() < 10


def test_autocast_does_not_round_the_products():
    s, t = draws().float(), draws(seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = similarity_preserving_loss(s, t)
    assert torch.equal(inside, similarity_preserving_loss(s, t))
    assert similarity_preserving_loss(s.bfloat16(), t.bfloat16()).dtype is torch.float32


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"teacher_features of the shape \(1, 2\)"):
        similarity_preserving_loss(S, T[:1])
    with pytest.raises(ValueError, match=r"features of the shape \(3,\)"):
        similarity_preserving_loss(S[0], T)
    with pytest.raises(ValueError, match=r"features of the shape \(3, 3, 1\)"):
        similarity_preserving_loss(S[..., None], T)
