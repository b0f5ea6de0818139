import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit
from torch import nn

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import VAT, adversarial_direction, virtual_adversarial_loss

WEIGHT = torch.tensor([[1, -0.5], [0.3, 0.8], [-0.6, 0.2]], dtype=torch.float64)
BIAS = torch.tensor([0.1, 0, -0.1], dtype=torch.float64)
X = torch.tensor([[0.5, -1.0]], dtype=torch.float64)


def linear(inputs):
    return inputs @ WEIGHT.T + BIAS


def by_hand(x, d, *, xi, eps, iterations):
    """The authors' loop for one row, with the gradient of each step by the chain rule of softmax."""
    p = linear(x).softmax(1)
    for _ in range(iterations):
        d = (linear(x + xi * d).softmax(1) - p) @ WEIGHT * xi
        d = d / d.norm()
    q = linear(x + eps * d).log_softmax(1)
    return d, (p * (p.log() - q)).sum()


@pytest.mark.parametrize(("iterations", "number"), [(1, 0.183319), (5, 0.273913)])
def test_by_hand(iterations, number):
    start = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    d, value = by_hand(X, start / start.norm(), xi=1e-3, eps=1.0, iterations=iterations)
    torch.testing.assert_close(value, torch.tensor(number, dtype=torch.float64), rtol=1e-5, atol=0)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(X.shape, generator=generator, dtype=X.dtype)
    generator.manual_seed(0)
    d, value = by_hand(X, first / first.norm(), xi=1e-3, eps=1.0, iterations=iterations)
    settings = {"xi": 1e-3, "iterations": iterations}
    found = adversarial_direction(X, linear, generator=generator, **settings)
    torch.testing.assert_close(found, d)
    generator.manual_seed(0)
    torch.testing.assert_close(virtual_adversarial_loss(X, linear, generator, eps=1.0, **settings), value[None])


def test_each_row_has_a_direction_of_its_own_of_length_one():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 3, 2, 2)
    directions = adversarial_direction(x, network, generator=torch.Generator().manual_seed(1), iterations=3)
    torch.testing.assert_close(directions.flatten(1).norm(dim=1), torch.ones(6))
    wide = network.double()
    exact = adversarial_direction(x.double(), wide, generator=torch.Generator().manual_seed(1), xi=1e-4, iterations=30)
    float32 = adversarial_direction(x, network.float(), generator=torch.Generator().manual_seed(1), iterations=30)
    cosine = F.cosine_similarity(exact.flatten(1), float32.double().flatten(1)).abs()
    assert cosine.min() > 0.98


def test_a_flat_network_keeps_the_first_direction():
    first = torch.randn(X.shape, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
    found = adversarial_direction(X, lambda x: 0 * linear(x), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, first / first.norm())


def test_the_gradient_is_that_of_the_moved_pass_alone():
    weight = WEIGHT.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    virtual_adversarial_loss(X, lambda x: x @ weight.T + BIAS, generator, eps=1.0).sum().backward()
    generator.manual_seed(0)
    moved = X + adversarial_direction(X, linear, generator=generator)
    expected = (linear(moved).softmax(1) - linear(X).softmax(1)).T @ moved
    torch.testing.assert_close(weight.grad, expected)


def test_without_a_step_it_is_the_plain_run():
    assert equal(fit(AddRegularizer(VAT(eps=0.0)))[0], fit()[0])


def test_dropout_is_no_change():
    """All passes drop the same, so that the term at eps=0 is 0."""
    values = []

    def noted(inputs, again, generator):
        values.append(virtual_adversarial_loss(inputs, again, generator, eps=0.0))
        return values[-1]

    fit(AddRegularizer(noted), net=lambda: Net(dropout=0.5))
    assert all(value.abs().max() < 1e-6 for value in values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": -1.0}, r"eps=-1\.0 must be >= 0"),
        ({"iterations": -1}, "iterations=-1 must be >= 0"),
        ({"xi": 0.0}, r"xi=0\.0 must be > 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VAT(**settings)
    with pytest.raises(ValueError, match=message):
        virtual_adversarial_loss(X, linear, **settings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64])
def test_inputs_that_cannot_be_moved_are_refused(dtype):
    with pytest.raises(ValueError, match="cannot be moved by small steps"):
        virtual_adversarial_loss(X.to(dtype), linear)
