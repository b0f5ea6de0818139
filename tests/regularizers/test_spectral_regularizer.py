import pytest
import torch
from torch import nn

from lightning_objectives.regularizers import SpectralRegularizer, spectral_penalty


def drawn():
    return torch.Generator().manual_seed(0)


def by_svd(network, power):
    total = 0.0
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            largest = torch.linalg.svdvals(layer.weight.reshape(len(layer.weight), -1))[0]
            total = total + (largest**power - 1) ** 2 + layer.bias.norm() ** (2 * power)
    return total


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 4), nn.LayerNorm(4)).double()


@pytest.mark.parametrize(("power", "expected"), [(1, (3 - 1) ** 2 + 5), (2, (9 - 1) ** 2 + 25)])
def test_by_hand(power, expected):
    layer = nn.Linear(2, 2)
    layer.weight.data, layer.bias.data = torch.diag(torch.tensor([1.0, -3.0])), torch.tensor([1.0, 2.0])
    assert spectral_penalty(layer, drawn(), power=power).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_value_and_gradient_are_those_of_a_decomposition(power):
    net = network()
    value, expected = spectral_penalty(net, drawn(), power=power, iterations=300), by_svd(net, power)
    torch.testing.assert_close(value, expected)
    layers = [parameter for module in (net[0], net[3]) for parameter in module.parameters()]
    for ours, theirs in zip(torch.autograd.grad(value, layers), torch.autograd.grad(expected, layers)):
        torch.testing.assert_close(ours, theirs)


def test_more_iterations_find_more():
    net = nn.Linear(40, 40, bias=False)
    net.weight.data = 5 * torch.linalg.qr(torch.randn(40, 40, generator=drawn())).Q + torch.eye(40)
    values = [spectral_penalty(net, drawn(), iterations=n).item() for n in (1, 5, 25)]
    assert values == sorted(values)
    assert values[0] < values[-1] <= ((torch.linalg.svdvals(net.weight)[0] ** 2 - 1) ** 2).item() * (1 + 1e-5)


def test_layers_of_the_spectral_norm_one_cost_nothing():
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.linalg.qr(torch.randn(3, 3)).Q
    assert spectral_penalty(layer, drawn()).item() == pytest.approx(0, abs=1e-10)


def test_a_weight_of_zero_has_a_finite_gradient():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    value = spectral_penalty(layer, drawn())
    value.backward()
    assert value.item() == 1.0
    assert layer.weight.grad.isfinite().all()


def test_the_generator_decides():
    net = network()
    one, two = (spectral_penalty(net, drawn(), iterations=1) for _ in range(2))
    assert one == two
    assert one != spectral_penalty(net, torch.Generator().manual_seed(1), iterations=1)


def test_half_precision_is_computed_in_float32():
    layer = nn.Linear(2, 2, bias=False).half()
    layer.weight.data = torch.diag(torch.tensor([1.0, 300.0])).half()
    assert spectral_penalty(layer, drawn()).item() == pytest.approx((9e4 - 1) ** 2, rel=1e-4)


def test_refusals():
    with pytest.raises(ValueError, match="ReLU has no linear layer and no convolution"):
        spectral_penalty(nn.ReLU())
    for name in ("power", "iterations"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            SpectralRegularizer(**{name: 0})
