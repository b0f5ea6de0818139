import pytest
import torch
from torch import nn

from lightning_objectives.regularizers import L2SP


def network():
    """Weights [1, 2], and [3, -1] in the head."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False))
    net[0].weight.data, net[1].weight.data = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]])
    return net


START = {"0.weight": torch.tensor([[0.5, 2.5]]), "1.weight": torch.tensor([[3.0], [1.0]])}


def test_by_hand():
    """0.1 / 2 (0.5^2 + 0.5^2) + 0.01 / 2 (3^2 + 1) = 0.025 + 0.05."""
    net = network()
    torch.testing.assert_close(L2SP(alpha=0.1, beta=0.01)(net, net[1], START), torch.tensor(0.075))


def test_a_head_that_is_not_new_is_pulled_to_the_reference():
    """0.1 / 2 (0.5 + 2^2) = 0.225."""
    net = network()
    value = L2SP(alpha=0.1, beta=0.01, new_head=False)(net, net[1], START)
    torch.testing.assert_close(value, torch.tensor(0.225))


def test_the_gradient_pulls_to_the_reference():
    net = network()
    L2SP(alpha=0.1, beta=0.01)(net, net[1], START).backward()
    torch.testing.assert_close(net[0].weight.grad, torch.tensor([[0.05, -0.05]]))
    torch.testing.assert_close(net[1].weight.grad, torch.tensor([[0.03], [-0.01]]))


def test_at_the_start_new_weights_alone_count():
    net = network()
    start = {name: parameter.detach() for name, parameter in net.named_parameters()}
    torch.testing.assert_close(L2SP(alpha=0.1, beta=0.01)(net, net[1], start), torch.tensor(0.05))


def test_frozen_weights_do_not_count():
    net = network()
    net[1].requires_grad_(False)
    torch.testing.assert_close(L2SP(alpha=0.1)(net, net[1], START), torch.tensor(0.025))


def test_half_precision_is_summed_in_float32():
    net = network().half()
    net[0].weight.data *= 1e4
    value = L2SP(alpha=2.0, beta=0.0)(net, net[1], {"0.weight": torch.zeros(1, 2).half()})
    torch.testing.assert_close(value, torch.tensor(5e8), rtol=1e-3, atol=0)


def test_refusals():
    with pytest.raises(ValueError, match=r"alpha=-1.0 must be >= 0"):
        L2SP(alpha=-1.0)
    net = network()
    with pytest.raises(ValueError, match=r"'0.weight' has the shape \(1, 2\), and in the reference \(3,\)"):
        L2SP()(net, net[1], {"0.weight": torch.ones(3)})
    with pytest.raises(ValueError, match="has none of the parameters of Sequential outside of its head: it has other"):
        L2SP()(net, net[1], {"other": torch.ones(3)})
