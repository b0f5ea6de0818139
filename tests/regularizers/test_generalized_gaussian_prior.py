import pytest
import torch
from scipy.stats import gennorm
from torch import nn

from lightning_objectives.regularizers import (
    GeneralizedGaussianPrior,
    gaussian_shape,
    generalized_gaussian_prior,
)


@pytest.mark.parametrize("shape", [0.5, 1.0, 1.7, 2.0])
def test_the_shape_of_drawn_weights_is_found(shape):
    drawn = torch.tensor(gennorm.rvs(shape, scale=0.03, size=200_000, random_state=0))
    parts = [drawn[:50_000].view(500, 100), drawn[50_000:]]
    assert gaussian_shape(parts).item() == pytest.approx(shape, rel=0.03)


@pytest.mark.parametrize(("weights", "shape"), [([1.0, -1.0], 3.0), ([0.0, 0.0], 3.0), ([1.0] + [0.0] * 10**6, 0.1)])
def test_the_shape_stays_between_its_ends(weights, shape):
    assert gaussian_shape([torch.tensor(weights)]).item() == pytest.approx(shape)


def test_by_hand():
    """-3 and three times a = 2 √3 - 3: 4 (9 + 3 a²) = 2 (3 + 3 a)², the ratio of Laplace; 1 + mean."""
    network = nn.Linear(4, 1, dtype=torch.float64)
    network.weight.data = torch.tensor([[-3.0, *[2 * 3**0.5 - 3] * 3]], dtype=torch.float64)
    assert gaussian_shape([network.weight]).item() == pytest.approx(1)
    assert generalized_gaussian_prior(network).item() == pytest.approx(1 + (3 + 3 * 0.4641016) / 4)


def test_the_gradient_is_the_authors_step():
    """(ν / n) sign(θ) (|θ| + 1)^(ν - 1), with the shape as a constant."""
    network = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    generalized_gaussian_prior(network).backward()
    weights = [network[0].weight, network[2].weight]
    shape, n = gaussian_shape(weights), 28
    for w in weights:
        torch.testing.assert_close(w.grad, shape / n * w.detach().sign() * (w.detach().abs() + 1) ** (shape - 1))
    assert network[0].bias.grad is None
    assert network[1].weight.grad is None


def test_frozen_weights_do_not_count_and_small_tensors_may():
    network = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    torch.testing.assert_close(generalized_gaussian_prior(network), generalized_gaussian_prior(network[1]))
    assert generalized_gaussian_prior(network[1], min_dims=0) != generalized_gaussian_prior(network[1])


def test_what_is_refused():
    with pytest.raises(ValueError, match="min_dims=-1 must be >= 0"):
        GeneralizedGaussianPrior(min_dims=-1)
    with pytest.raises(ValueError, match="ReLU has no trained parameter"):
        GeneralizedGaussianPrior()(nn.ReLU())
    with pytest.raises(ValueError, match=r"weights=\[\] hold no number"):
        gaussian_shape([])
