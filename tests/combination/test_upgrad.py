import pytest
import torch
from scipy.optimize import nnls

from lightning_objectives.combination import pcgrad_weights, upgrad_weights

CONFLICT = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])


def drawn(seed, terms, size=6):
    return torch.randn(terms, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_scipy(g):
    """The projection of g_i is g_i + G^T u with u >= 0 as short as possible: non-negative least squares."""
    projected = [g[i] + g.T @ torch.tensor(nnls(g.T.numpy(), -g[i].numpy())[0]) for i in range(len(g))]
    return torch.stack(projected).mean(0)


def test_by_hand():
    weights = upgrad_weights(CONFLICT)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.75]))
    torch.testing.assert_close(weights @ CONFLICT, torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize(("terms", "size"), [(2, 6), (3, 6), (5, 6), (8, 20), (6, 3)])
def test_equals_non_negative_least_squares(terms, size):
    for seed in range(6):
        g = drawn(seed, terms, size) * torch.logspace(-2, 2, terms, dtype=torch.float64)[:, None]
        update = upgrad_weights(g) @ g
        torch.testing.assert_close(update, by_scipy(g), rtol=1e-6, atol=1e-9)
        assert (g @ update >= -1e-9).all()


def test_two_terms_are_half_of_pcgrad():
    for seed in range(6):
        g = drawn(seed, 2, 2)
        torch.testing.assert_close(upgrad_weights(g), pcgrad_weights(g) / 2)


def test_without_conflict_it_is_the_mean():
    assert upgrad_weights(torch.tensor([[1.0, 0.5], [0.5, 1.0], [1.0, 1.0]])).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("scale", [1e-15, 1e12])
def test_small_gradients_conflict_too(scale):
    torch.testing.assert_close(upgrad_weights(scale * CONFLICT), upgrad_weights(CONFLICT))
    factors = torch.tensor([1.0, scale])
    update = upgrad_weights(CONFLICT * factors[:, None]) @ (CONFLICT * factors[:, None])
    assert (CONFLICT @ update >= -1e-6 * update.norm()).all()


def test_opposite_gradients_and_gradients_of_zero():
    one = torch.tensor([1.0, 2.0])
    opposite = torch.stack([one, -one])
    torch.testing.assert_close(upgrad_weights(opposite) @ opposite, 0 * one, rtol=0, atol=1e-6)
    g = torch.cat([CONFLICT, torch.zeros(1, 2)])
    torch.testing.assert_close(upgrad_weights(g), torch.tensor([2 / 3, 1 / 2, 1 / 3]))


def test_bad_gradients_give_the_mean():
    for bad in (torch.nan, torch.inf):
        assert upgrad_weights(torch.tensor([[1.0, 2.0], [bad, 0.0]])).tolist() == [0.5, 0.5]


def test_too_many_terms_are_refused():
    with pytest.raises(ValueError, match=r"gradients of the shape \(11, 2\) belong to 11 terms"):
        upgrad_weights(torch.zeros(11, 2))
