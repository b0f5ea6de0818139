import math

import pytest
import torch
from torch import nn

from lightning_objectives.distillation import VID

MEAN = torch.tensor([[[1.0, 2.0], [0.0, -1.0]]])
TEACHER = torch.tensor([[[0.0, 2.0], [1.0, 1.0]]])


class Identity(nn.Module):
    """In place of the trained network, so that the student's layer is the mean itself."""

    def forward(self, values):
        return values


def plain(**settings):
    method = VID(**settings)
    method.build(hidden=(2,), teacher_hidden=(2,))
    method.networks[0] = Identity()
    return method


def variance(method, number=0):
    return nn.functional.softplus(method.spreads[number]) + 1e-5


def test_by_hand():
    """Squares 1, 0, 1, 4 with the mean 1.5: (1.5 / 5 + log 5) / 2 = 0.954719."""
    torch.testing.assert_close(plain()([MEAN], [TEACHER]), torch.tensor([0.954719]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("start", [2e-5, 0.5, 5.0, 1000.0])
def test_the_variance_begins_where_it_is_set(start):
    torch.testing.assert_close(variance(plain(initial_variance=start)), torch.full((2,), start), rtol=1e-3, atol=0)


def test_the_best_variance_is_the_mean_square():
    """Of channel 0: (1 + 0) / 2, of channel 1: (1 + 4) / 2; there the gradient is 0."""
    method = plain()
    for value, slope in ((torch.tensor([0.5, 2.5]), 0.0), (torch.tensor([0.4, 2.4]), -1.0)):
        method.spreads[0].data = (value - 1e-5).expm1().log()
        (found,) = torch.autograd.grad(method([MEAN], [TEACHER]).sum(), method.spreads[0])
        if slope:
            assert (found < 0).all()
        else:
            torch.testing.assert_close(found, torch.zeros(2), rtol=0, atol=1e-6)


def test_each_channel_has_its_own_variance():
    method = plain()
    method.spreads[0].data = (torch.tensor([1.0, 4.0]) - 1e-5).expm1().log()
    expected = (1 / 1 + 2 * math.log(1.0) + 5 / 4 + 2 * math.log(4.0)) / 2 / 4
    torch.testing.assert_close(method([MEAN], [TEACHER]), torch.tensor([expected]))


def test_the_network_acts_on_the_channels_of_each_point():
    """Equal to 1x1 convolutions with the same weights, and the larger map is pooled."""
    method = VID()
    method.build(hidden=(3,), teacher_hidden=(4,))
    own, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 2)
    mean = nn.functional.avg_pool2d(own, 2)
    for number, layer in enumerate(method.networks[0]):
        if isinstance(layer, nn.Linear):
            mean = nn.functional.conv2d(mean, layer.weight[:, :, None, None])
            mean = mean.relu() if number < 4 else mean
    expected = ((mean - teacher).square() / 5 + math.log(5)).mean((1, 2, 3)) / 2
    torch.testing.assert_close(method([own], [teacher]), expected)


def test_layers_add_up_and_every_part_is_trained():
    method = VID()
    method.build(hidden=(2, 2), teacher_hidden=(2, 2))
    method.networks[1].load_state_dict(method.networks[0].state_dict())
    one = VID()
    one.build(hidden=(2,), teacher_hidden=(2,))
    one.networks[0].load_state_dict(method.networks[0].state_dict())
    teacher = TEACHER.clone().requires_grad_()
    torch.testing.assert_close(method([MEAN, MEAN], [teacher, teacher]), 2 * one([MEAN], [TEACHER]))
    large = torch.randn(64, 2)
    method([large, large], [teacher.detach()[:, :, 0].expand(64, 2)] * 2).sum().backward()
    assert teacher.grad is None
    names = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert names == {name for name, _ in method.named_parameters()}
    assert all(f"spreads.{number}" in names for number in (0, 1))


def test_large_spreads_stay_finite():
    method = plain()
    method.spreads[0].data = torch.tensor([1e4, -1e4])
    value = method([MEAN], [TEACHER])
    value.sum().backward()
    assert value.isfinite().all()
    assert method.spreads[0].grad.isfinite().all()


def test_refusals():
    with pytest.raises(ValueError, match=r"initial_variance=0\.0 must be > 1e-05"):
        VID(initial_variance=0.0)
    with pytest.raises(ValueError, match="1 layers of the student cannot be compared with 2 of the teacher"):
        plain()([MEAN], [TEACHER, TEACHER])
