import math

import pytest
import torch

from lightning_objectives.combination import NashMTL, nash_mtl_weights

INF = float("inf")
CONFLICT = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])


def drawn(seed, terms):
    return torch.randn(terms, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    """M = ((1, -1), (-1, 2)), where the first weights of the authors' solver make its problem impossible."""
    weights = nash_mtl_weights(CONFLICT, max_norm=INF)
    torch.testing.assert_close(weights, torch.tensor([1.847759, 1.306563]), rtol=1e-5, atol=0)
    torch.testing.assert_close(weights @ CONFLICT, torch.tensor([0.541196, 1.306563]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("terms", [2, 3, 8])
def test_the_equation_holds(terms):
    for seed in range(5):
        g = drawn(seed, terms)
        weights = nash_mtl_weights(g, max_norm=INF)
        torch.testing.assert_close(g @ g.T @ weights, 1 / weights, rtol=1e-4, atol=0)
        assert (weights @ g).norm().item() == pytest.approx(terms**0.5, rel=1e-4)


@pytest.mark.parametrize("degrees", [120, 170, 179, 179.9])
def test_strong_conflict(degrees):
    """Two gradients of the length 1 have equal weights with 2 α² (1 + cos) = 2 / 2 in each row."""
    angle = math.radians(degrees)
    g = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    expected = (1 + math.cos(angle)) ** -0.5
    assert nash_mtl_weights(g, max_norm=INF).tolist() == pytest.approx(
        [expected, expected], rel=0.5 * 1e-6 * expected**2 + 1e-9
    )


def test_orthogonal_gradients_get_equal_lengths():
    g = torch.diag(torch.tensor([0.5, 2.0, 10.0]))
    torch.testing.assert_close(nash_mtl_weights(g, max_norm=INF), torch.tensor([2.0, 0.5, 0.1]))


def test_the_combined_gradient_has_the_greatest_length():
    for norm in (0.1, 1.0):
        g = drawn(0, 3)
        assert (nash_mtl_weights(g, max_norm=norm) @ g).norm().item() == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-15, 1e12])
def test_the_scale_of_one_term_means_nothing(scale):
    g = drawn(1, 3).float()
    factors = torch.tensor([1.0, scale, 1.0])
    torch.testing.assert_close(nash_mtl_weights(g * factors[:, None]) * factors, nash_mtl_weights(g))


def test_opposite_gradients_stay_bounded():
    one = torch.tensor([1.0, 2.0])
    weights = nash_mtl_weights(torch.stack([one, -one]), max_norm=INF)
    assert (weights * one.norm() > 0).all()
    assert (weights * one.norm() <= 1001).all()
    torch.testing.assert_close(weights[0], weights[1])


def test_a_gradient_of_zero_leaves_the_others():
    g = torch.cat([drawn(2, 2), torch.zeros(1, 9)])
    torch.testing.assert_close(nash_mtl_weights(g, max_norm=INF)[:2], nash_mtl_weights(g[:2], max_norm=INF))


def test_bad_gradients_give_the_sum():
    for bad in (torch.nan, torch.inf):
        assert nash_mtl_weights(torch.tensor([[1.0, 2.0], [bad, 0.0]])).tolist() == [1.0, 1.0]


def test_no_norm_is_refused():
    with pytest.raises(ValueError, match=r"max_norm=0\.0 must be > 0"):
        NashMTL(max_norm=0.0)


def test_many_terms_in_few_dimensions():
    """Steps that are not damped leave the positive numbers here, and end at another root of the equation."""
    for seed in range(200):
        g = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights = nash_mtl_weights(g, max_norm=INF)
        ridge = 1e-6 * g.square().sum(1)
        torch.testing.assert_close(g @ g.T @ weights + ridge * weights, 1 / weights, rtol=1e-6, atol=0)
        assert (weights > 0).all()
