import pytest
import torch
from scipy.optimize import minimize

from lightning_objectives.combination import MGDA, mgda_weights


@pytest.mark.parametrize(
    ("gradients", "weights"),
    [
        ([[2.0, 0.0], [0.0, 1.0]], [0.2, 0.8]),  # (M22 - M12) / (M11 + M22 - 2 M12) = 1/5
        ([[1.0, 1.0], [3.0, 3.0]], [1.0, 0.0]),  # clipped at the end, where the paper's solver gives 0.999
        ([[1.0, 0.0], [-2.0, 0.0]], [2 / 3, 1 / 3]),  # opposite: their combination is 0
    ],
)
def test_two_terms_by_hand(gradients, weights):
    torch.testing.assert_close(mgda_weights(torch.tensor(gradients)), torch.tensor(weights))


@pytest.mark.parametrize("terms", [3, 5, 8])
def test_equals_scipy(terms):
    for seed in range(5):
        g = torch.randn(terms, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
        gram = (g @ g.T).numpy()
        found = minimize(
            lambda w, gram=gram: w @ gram @ w,
            [1 / terms] * terms,
            jac=lambda w, gram=gram: 2 * gram @ w,
            bounds=[(0, 1)] * terms,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        w = mgda_weights(g)
        assert w.min() >= 0
        assert w.sum().item() == pytest.approx(1)
        assert (w @ g).square().sum().item() == pytest.approx(found.fun, rel=1e-5, abs=1e-9)


def test_the_step_lowers_every_term():
    """<g_k, d> >= |d|² for the shortest combination d, which is never longer than a gradient."""
    for seed in range(10):
        g = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        d = mgda_weights(g) @ g
        assert (g @ d >= d.square().sum() - 1e-9).all()
        assert d.norm() <= g.norm(dim=1).min() + 1e-12


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e15])
def test_equal_gradients_give_that_gradient_at_any_scale(scale):
    g = scale * torch.tensor([[1.0, -2.0]]).expand(3, 2)
    torch.testing.assert_close(mgda_weights(g) @ g, g[0])


def test_a_gradient_of_zero_gets_all_the_weight_and_a_bad_one_spoils_nothing():
    torch.testing.assert_close(mgda_weights(torch.tensor([[1.0, 2.0], [0.0, 0.0]])), torch.tensor([0.0, 1.0]))
    assert mgda_weights(torch.zeros(2, 3)).sum().item() == pytest.approx(1)
    assert mgda_weights(torch.tensor([[1.0, torch.nan], [0.0, 1.0]])).tolist() == [0.5, 0.5]


def test_half_precision_is_computed_wider():
    """|g1|² = 131072 is beyond float16."""
    weights = MGDA()(torch.tensor([[256.0, 256.0], [-256.0, 256.0]]).half())
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5]))


def test_too_many_terms_are_refused():
    with pytest.raises(ValueError, match="belong to 11 terms, but there must be at most 10"):
        mgda_weights(torch.ones(11, 2))
