"""One step by hand, the rate of zero, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_objectives.adaptation import TENT, softmax_entropy


def normalized(norm, x):
    """By the statistics of the batch."""
    return F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)


def stepped(method, batches=1):
    """A column through BatchNorm, two logits from it; the scale and the shift after some updates."""
    norm = nn.BatchNorm1d(1)
    params = method.adapts(norm)
    state = method.init(params)
    for _ in range(batches):
        h = normalized(norm, torch.tensor([[0.0], [1.0], [2.0], [5.0]]))
        method.update(torch.cat([h + 0.5, -h], 1), h, params, state, again=None)
    return norm.weight.item(), norm.bias.item()


def test_the_entropy_by_hand():
    """p = 0.8, 0.2: 0.8 · 0.22314 + 0.2 · 1.60944 = 0.50040."""
    assert softmax_entropy(torch.tensor([[0.8, 0.2]]).log()).item() == pytest.approx(0.500402, abs=1e-6)
    wide = torch.tensor([[1e4, -1e4]], dtype=torch.bfloat16)
    assert softmax_entropy(wide).item() == 0


def test_a_step_by_hand():
    """dH/dz = -p (log p + H), through BatchNorm of x = 0, 1, 2, 5; SGD at 0.1."""
    assert stepped(TENT(lr=0.1, optimizer="sgd")) == pytest.approx((1.022391, -0.007516), abs=1e-6)


def by_hand(x, lr, momentum, batches):
    """SGD with momentum, with the gradient of the entropy worked out."""
    mean, var = x.mean(), ((x - x.mean()) ** 2).mean()
    h0 = (x - mean) / (var + 1e-5).sqrt()
    weight, bias, speed = 1.0, 0.0, torch.zeros(2, dtype=torch.float64)
    for _ in range(batches):
        h = weight * h0 + bias
        p = torch.stack([h + 0.5, -h], 1).softmax(1)
        slope = -p * (p.log() - (p * p.log()).sum(1, keepdim=True))  # H = -sum p log p
        dh = (slope[:, 0] - slope[:, 1]) / len(x)
        speed = momentum * speed + torch.stack([(dh * h0).sum(), dh.sum()])
        weight, bias = weight - lr * speed[0].item(), bias - lr * speed[1].item()
    return weight, bias


def test_several_steps_by_a_slow_loop():
    x = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    mine = stepped(TENT(lr=0.1, optimizer="sgd", momentum=0.5), batches=3)
    assert mine == pytest.approx(by_hand(x, 0.1, 0.5, 3), abs=1e-5)


def test_the_first_step_of_adam_has_the_length_of_the_rate():
    weight, bias = stepped(TENT(lr=0.01))
    assert (weight, bias) == pytest.approx((1.01, -0.01), abs=1e-5)


def test_at_a_rate_of_zero_nothing_moves():
    assert stepped(TENT(lr=0.0), batches=2) == (1, 0)


def test_a_gradient_that_is_not_finite_counts_as_zero():
    method, norm = TENT(lr=0.1, optimizer="sgd"), nn.BatchNorm1d(1)
    params = method.adapts(norm)
    h = normalized(norm, torch.tensor([[0.0], [float("nan")]]))
    method.update(torch.cat([h, -h], 1), h, params, method.init(params), again=None)
    assert (norm.weight.item(), norm.bias.item()) == (1, 0)


def test_it_adapts_the_scales_and_shifts_of_all_normalization():
    norms = [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True), nn.RMSNorm(4)]
    found = TENT().adapts(nn.Sequential(*norms, nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)))
    assert list(found) == [*(f"{i}.{name}" for i in range(4) for name in ("weight", "bias")), "4.weight"]


def test_logits_that_depend_on_nothing_adapted_are_refused():
    method, norm, linear = TENT(), nn.BatchNorm1d(2), nn.Linear(2, 2)
    params = method.adapts(norm)
    with pytest.raises(ValueError, match="the logits depend on none of them"):
        method.update(linear(torch.ones(2, 2)), torch.ones(2, 2), params, method.init(params), again=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"lr": -1.0}, r"lr=-1\.0"), ({"momentum": 1.0}, r"momentum=1\.0"), ({"optimizer": "rmsprop"}, "'adam' or 'sgd'")],
    ids=["lr", "momentum", "optimizer"],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TENT(**settings)


def test_a_batch_of_one_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"\(1, 3\).*drop_last=True"):
        TENT().statistics(torch.zeros(1, 3), None, None)
    assert TENT().statistics(torch.zeros(1, 3, 2), None, None) is None
