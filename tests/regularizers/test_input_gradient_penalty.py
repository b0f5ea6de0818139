import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit
from torch import nn

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import InputGradientPenalty, input_gradient_penalty

WEIGHT = torch.tensor([[1, -0.5], [0.3, 0.8], [-0.6, 0.2]], dtype=torch.float64)
BIAS = torch.tensor([0.1, 0, -0.1], dtype=torch.float64)


def linear(inputs):
    return inputs @ WEIGHT.T + BIAS


def test_by_hand():
    """The gradient of a linear network is Wᵀ(p - y)."""
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    p = linear(x).softmax(1)[0]
    expected = (WEIGHT.T @ (p - torch.tensor([0.0, 1, 0], dtype=torch.float64))).square().sum()
    assert expected.item() == pytest.approx(1.235805, abs=1e-6)
    torch.testing.assert_close(input_gradient_penalty(x, torch.tensor([1]), linear), expected[None])


def test_each_row_has_the_term_that_it_has_alone():
    """No row is divided by the number of rows."""
    network, x, y = (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)),
        torch.randn(8, 3, 4),
        torch.arange(8) % 3,
    )
    whole = input_gradient_penalty(x, y, network)
    alone = torch.cat([input_gradient_penalty(x[n : n + 1], y[n : n + 1], network) for n in range(8)])
    torch.testing.assert_close(whole, alone)


def test_its_gradient_reaches_the_weights():
    """By central differences of one weight."""
    network, x, y = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(),
        torch.randn(5, 3).double(),
        torch.arange(5) % 3,
    )
    input_gradient_penalty(x, y, network).sum().backward()
    weight, values = network[0].weight, []
    for move in (1e-4, -2e-4):
        with torch.no_grad():
            weight[1, 2] += move
        values.append(input_gradient_penalty(x, y, network).sum().item())
    assert weight.grad[1, 2].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)
    assert x.grad is None


def test_soft_targets_give_the_gradient_of_the_expected_loss():
    x, soft = torch.randn(1, 2, dtype=torch.float64), torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    expected = (WEIGHT.T @ (linear(x).softmax(1) - soft)[0]).square().sum()
    torch.testing.assert_close(input_gradient_penalty(x, soft, linear), expected[None])


def test_it_works_in_no_grad_and_flattens_the_loss_in_a_training():
    with torch.no_grad():
        assert input_gradient_penalty(torch.randn(2, 2).double(), torch.tensor([0, 1]), linear).min() > 0
    x, y = torch.randn(24, 4, generator=torch.Generator().manual_seed(3)), torch.arange(24) % 3
    nets = [
        fit(*callbacks, max_epochs=20)[0] for callbacks in ([], [AddRegularizer(InputGradientPenalty(), strength=1.0)])
    ]
    plain, flat = (input_gradient_penalty(x, y, net.eval()).mean() for net in nets)
    assert flat < 0.5 * plain


def test_without_strength_it_is_the_plain_run():
    assert equal(fit(AddRegularizer(InputGradientPenalty(), strength=0.0))[0], fit()[0])


def test_dropout_has_masks_of_its_own_and_nothing_breaks():
    fit(AddRegularizer(InputGradientPenalty()), net=lambda: Net(dropout=0.5))


def test_tokens_are_refused():
    with pytest.raises(ValueError, match=r"Inputs of torch\.int64 have no derivative"):
        input_gradient_penalty(torch.zeros(2, 3).long(), torch.zeros(2).long(), F.relu)
