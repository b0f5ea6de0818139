import pytest
import torch
from helpers import equal, fit
from torch import nn

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import JacobianPenalty, jacobian_penalty

WEIGHT = torch.tensor([[1, -0.5], [0.3, 0.8], [-0.6, 0.2]], dtype=torch.float64)
X = torch.tensor([[0.5, -1.0]], dtype=torch.float64)


def linear(inputs):
    return inputs @ WEIGHT.T


def test_by_hand(monkeypatch):
    """½ Σ W² = 1.19. The direction (0.6, 0, 0.8) gives Wᵀv = (0.12, -0.14): 3/2 · 0.034 = 0.051."""
    exact = jacobian_penalty(linear(X), X, linear, projections=0)
    torch.testing.assert_close(exact, torch.tensor([1.19], dtype=torch.float64))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.tensor([[[3.0, 0.0, 4.0]]]))
    one = jacobian_penalty(linear(X), X, linear, torch.Generator())
    torch.testing.assert_close(one, torch.tensor([0.051], dtype=torch.float64), rtol=1e-6, atol=0)


def test_exact_equals_torchs_jacobian_of_each_row():
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), torch.randn(3, 2, 3)
    expected = [torch.autograd.functional.jacobian(network, row[None]).square().sum() / 2 for row in x]
    torch.testing.assert_close(jacobian_penalty(network(x), x, network, projections=0), torch.stack(expected))


@pytest.mark.parametrize("projections", [1, 3])
def test_the_mean_over_directions_is_the_exact_value(projections):
    x = X.expand(20_000, 2)
    found = jacobian_penalty(linear(x), x, linear, torch.Generator().manual_seed(0), projections=projections)
    assert found.mean().item() == pytest.approx(1.19, rel=0.02)
    assert found.std() > 0.1


def test_one_logit_needs_one_direction():
    """For C = 1 each direction is 1 or -1."""
    x = torch.randn(4, 3)
    torch.testing.assert_close(
        jacobian_penalty(x[:, :1], x, lambda x: x[:, :1] * 5, torch.Generator()), torch.full((4,), 12.5)
    )


def test_it_flattens_the_network_in_a_training():
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(3))
    nets = [fit(*callbacks, max_epochs=20)[0] for callbacks in ([], [AddRegularizer(JacobianPenalty(), strength=1.0)])]
    plain, flat = (jacobian_penalty(net.eval()(x), x, net, projections=0).mean() for net in nets)
    assert flat < 0.5 * plain


def test_without_strength_it_is_the_plain_run():
    assert equal(fit(AddRegularizer(JacobianPenalty(), strength=0.0))[0], fit()[0])


def test_what_is_refused():
    with pytest.raises(ValueError, match="projections=-1 must be >= 0"):
        JacobianPenalty(projections=-1)
    with pytest.raises(ValueError, match=r"Inputs of torch\.int64 have no derivative"):
        jacobian_penalty(torch.zeros(2, 3), torch.zeros(2, 3).long(), linear)
