import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lightning_objectives.combination import CAGrad, cagrad_weights

CONFLICT = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])


def drawn(seed, terms=3):
    return torch.randn(terms, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def authors(g, c):
    """The direction, with SLSQP from 1 / K as in the authors' code."""
    gram, terms = (g @ g.T).numpy(), len(g)
    g0 = g.mean(0)
    radius = c * g0.norm().item()
    b = (g @ g0).numpy()
    found = minimize(
        lambda w: w @ b + radius * np.sqrt(w @ gram @ w + 1e-12),
        [1 / terms] * terms,
        bounds=[(0, 1)] * terms,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    gw = torch.tensor(found.x) @ g
    return g0 + radius / gw.norm() * gw


@pytest.mark.parametrize(("rescale", "divisor"), [("none", 1), ("square", 1.25), ("linear", 1.5)])
def test_by_hand(rescale, divisor):
    """g0 = (0, 1/2), w = (1, 0), d = g0 + 1/4 (1, 0)."""
    weights = cagrad_weights(CONFLICT, conflict=0.5, rescale=rescale)
    torch.testing.assert_close(weights @ CONFLICT / 2, torch.tensor([0.25, 0.5]) / divisor)


@pytest.mark.parametrize("terms", [2, 3, 5])
@pytest.mark.parametrize("c", [0.2, 0.4, 0.9])
def test_equals_the_authors_solver(terms, c):
    for seed in range(4):
        g = drawn(seed, terms)
        direction = cagrad_weights(g, conflict=c, rescale="none") @ g / terms
        torch.testing.assert_close(direction, authors(g, c), rtol=1e-3, atol=1e-3)


def test_it_is_the_best_direction_near_the_mean():
    """No other point of the ball lowers the worst term more."""
    for seed in range(5):
        g = drawn(seed)
        g0 = g.mean(0)
        d = cagrad_weights(g, conflict=0.4, rescale="none") @ g / 3
        radius = 0.4 * g0.norm()
        assert (d - g0).norm() <= radius * (1 + 1e-6)
        moves = torch.randn(2000, 6, dtype=torch.float64)
        others = torch.cat([g0 + radius * moves / moves.norm(dim=1, keepdim=True), g0[None]])
        assert (g @ d).min() >= (others @ g.T).amin(1).max() - 1e-9


def test_without_conflict_it_is_the_sum_and_equal_gradients_keep_their_direction():
    torch.testing.assert_close(cagrad_weights(drawn(0), conflict=0.0), torch.ones(3).double())
    same = torch.tensor([[1.0, -2.0]]).expand(3, 2)
    torch.testing.assert_close(cagrad_weights(same, conflict=0.4) @ same, 3 * 1.4 / 1.16 * same[0])
    torch.testing.assert_close(cagrad_weights(same, conflict=0.4, rescale="linear") @ same, 3 * same[0])


@pytest.mark.parametrize("scale", [1e-18, 1e15])
def test_the_scale_means_nothing(scale):
    torch.testing.assert_close(cagrad_weights(scale * CONFLICT), cagrad_weights(CONFLICT))


def test_zero_and_bad_gradients_give_the_sum():
    one = torch.tensor([1.0, 2.0])
    opposite = torch.stack([one, -one])
    torch.testing.assert_close(cagrad_weights(opposite) @ opposite, 0 * one)
    for gradients in ([0 * one, 0 * one], [one, one * torch.nan], [one * torch.inf, one]):
        assert cagrad_weights(torch.stack(gradients)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conflict": 1.0}, r"conflict=1\.0 must be in \[0, 1\)"),
        ({"conflict": -0.1}, r"conflict=-0\.1 must be in \[0, 1\)"),
        ({"rescale": "twice"}, "rescale='twice' must be"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CAGrad(**settings)
