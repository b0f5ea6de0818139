import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit
from torch import nn

from lightning_objectives.callbacks import ReplaceLoss
from lightning_objectives.losses import (
    SmoothAdversarialCompSumLoss,
    comp_sum_loss,
    smooth_adversarial_comp_sum_loss,
)

TARGET = torch.arange(6) % 3


def network(seed=0, classes=3):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, classes)).double()


def inputs(seed=0):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def margins(logits, y):
    return torch.cat([logits[y] - logits[:y], logits[y] - logits[y + 1 :]])


def smooth(net, x, target=TARGET, **settings):
    return smooth_adversarial_comp_sum_loss(net(x), target, x, net, **settings)


def test_by_hand():
    """A step of 0.5 from x = 0 moves the margins (2 x, x) of z = (x, -x, 0) by (1, 0.5), whose length is sqrt 1.25."""
    line = lambda x: torch.cat([x, -x, 0 * x], 1)  # noqa: E731
    x = torch.zeros(1, 1)
    loss = smooth_adversarial_comp_sum_loss(line(x), torch.tensor([0]), x, line, gamma=0.5, nu=2.0, rho=4.0)
    assert loss.item() == pytest.approx(math.log(3) + 2 * math.sqrt(1.25), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.01, 0.3])
def test_the_change_of_a_linear_network_is_the_greatest_over_all_corners(gamma):
    """A norm of a linear map is greatest at a corner of the box."""
    net, x = nn.Linear(4, 3).double(), inputs()
    loss = smooth(net, x, gamma=gamma, nu=1.0) - F.cross_entropy(net(x), TARGET, reduction="none")
    for row, y in enumerate(TARGET.tolist()):
        corners = [
            (margins(net(x[row] + gamma * torch.tensor(signs).double()), y) - margins(net(x[row]), y)).norm()
            for signs in itertools.product((-1.0, 1.0), repeat=4)
        ]
        assert loss[row] <= max(corners) + 1e-9
        assert loss[row] >= 0.9 * max(corners)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_it_is_not_below_the_loss_of_any_change(tau):
    """With nu = sqrt(C - 1) / rho; the margins of the changed inputs are cut off by min(max(0, 1 - u / rho), 1)."""
    net, x, gamma, rho = network(), inputs(), 0.2, 0.7
    loss = smooth(net, x, gamma=gamma, tau=tau, rho=rho, nu=math.sqrt(2) / rho)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        moved = x + gamma * (2 * torch.rand(6, 4, generator=generator, dtype=torch.float64) - 1)
        for row, y in enumerate(TARGET.tolist()):
            u = (1 - margins(net(moved[row]), y) / rho).clamp(0, 1).sum()
            cut = u.log1p() if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)
            assert cut <= loss[row] + 1e-9


def test_the_change_of_a_curved_network_is_near_the_greatest_over_all_corners():
    """On average; that of one sample may be a local one."""
    net, x, gamma = network(), inputs(), 0.3
    found = smooth(net, x, gamma=gamma) - F.cross_entropy(net(x), TARGET, reduction="none")
    greatest = []
    for row, y in enumerate(TARGET.tolist()):
        moved = x[row] + gamma * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4))).double()
        greatest.append(max((margins(z, y) - margins(net(x[row]), y)).norm() for z in net(moved)))
    assert found.mean() >= 0.9 * torch.stack(greatest).mean()


@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"gamma": 0.3, "nu": 0.0}])
def test_without_a_change_it_is_the_comp_sum_loss(settings):
    net, x = network(), inputs()
    loss = smooth(net, x, tau=1.5, rho=2.0, **settings)
    torch.testing.assert_close(loss, comp_sum_loss(net(x) / 2, TARGET, tau=1.5))


def test_both_ends_of_the_change_have_a_gradient():
    """That of the length at the changed inputs, which are held."""
    net, x = nn.Linear(4, 3, bias=False).double(), inputs()
    (ours,) = torch.autograd.grad(smooth(net, x, gamma=0.2, nu=3.0).sum(), net.weight)
    seen = []
    smooth(lambda v: seen.append(v) or net(v), x, gamma=0.2)
    assert torch.equal(seen[-1], x)
    worst = seen[-2].detach()
    assert ((worst - x).abs() <= 0.2 + 1e-12).all()
    by_hand = F.cross_entropy(net(x), TARGET, reduction="sum")
    for row, y in enumerate(TARGET.tolist()):
        by_hand = by_hand + 3 * (margins(net(worst[row]), y) - margins(net(x[row]), y)).norm()
    torch.testing.assert_close(ours, torch.autograd.grad(by_hand, net.weight)[0])


def test_a_target_of_probabilities_gives_the_expectation_at_one_change():
    net, x = network(), inputs()
    one_hot = F.one_hot(TARGET, 3).double()
    torch.testing.assert_close(smooth(net, x, one_hot, gamma=0.2), smooth(net, x, gamma=0.2))


def test_a_network_that_ignores_its_inputs_has_no_change_and_a_finite_gradient():
    weight = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    loss = smooth(lambda x: x @ weight.T, inputs(), gamma=0.2)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.full((6,), math.log(3)).double())
    assert weight.grad.isfinite().all()


class ByHand(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return smooth_adversarial_comp_sum_loss(self(x), y, x, self, gamma=0.1, nu=2.0, steps=4).mean()


def test_a_training_is_the_loop_by_hand():
    ours, _ = fit(ReplaceLoss(SmoothAdversarialCompSumLoss(gamma=0.1, nu=2.0, steps=4)))
    hand, _ = fit(net=ByHand)
    torch.testing.assert_close(dict(ours.named_parameters()), dict(hand.named_parameters()), rtol=0, atol=1e-6)


def test_refusals():
    for setting, value in (("gamma", -0.1), ("tau", 2.1), ("rho", 0.0), ("nu", -1.0), ("steps", 0), ("steps", 1.5)):
        with pytest.raises(ValueError, match=f"{setting}={value}".replace(".", r"\.")):
            SmoothAdversarialCompSumLoss(**{"gamma": 0.1, setting: value})
    for dtype in (torch.long, torch.bfloat16):
        x = torch.zeros(1, 2).to(dtype)
        with pytest.raises(ValueError, match="cannot be moved by small steps"):
            smooth_adversarial_comp_sum_loss(torch.zeros(1, 2), TARGET[:1], x, lambda v: v, gamma=0.1)
