import math

import pytest
import torch

from lightning_objectives.distillation import AttentionTransfer, attention_distance

OWN = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, -1.0]]]])
TEACHER = torch.tensor([[[[2.0, 0.0], [1.0, 1.0]]]])


def slow(own, teacher, power):
    """One sample in plain Python."""
    maps = []
    for values in (own, teacher):
        channels = [channel.flatten().tolist() for channel in values]
        sums = [sum(abs(v) ** power for v in place) / len(channels) for place in zip(*channels)]
        norm = math.sqrt(sum(s * s for s in sums))
        maps.append([s / norm if norm else 0.0 for s in sums])
    return sum((a - b) ** 2 for a, b in zip(*maps)) / len(maps[0])


def test_by_hand():
    """Squares (1, 5, 1, 2) and (4, 0, 1, 1), divided by the roots of 31 and of 18."""
    torch.testing.assert_close(attention_distance([OWN], [TEACHER]), torch.tensor([0.351833]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_equals_a_slow_loop(power):
    generator = torch.Generator().manual_seed(0)
    own, teacher = torch.randn(4, 3, 2, 5, generator=generator), torch.randn(4, 7, 2, 5, generator=generator)
    expected = torch.tensor([slow(s, t, power) for s, t in zip(own, teacher)])
    torch.testing.assert_close(attention_distance([own], [teacher], power=power), expected)


def test_the_scale_of_a_map_does_not_matter():
    distances = AttentionTransfer()([1e3 * OWN], [1e-4 * TEACHER])
    torch.testing.assert_close(distances, attention_distance([OWN], [TEACHER]))
    large = AttentionTransfer()([1e30 * OWN], [TEACHER])
    torch.testing.assert_close(large, attention_distance([OWN], [TEACHER]))


def test_a_map_of_zeros_has_a_finite_gradient():
    own = torch.zeros(1, 2, 2, 2, requires_grad=True)
    distance = attention_distance([own], [TEACHER])
    distance.sum().backward()
    torch.testing.assert_close(distance.detach(), torch.tensor([0.25]))
    assert own.grad.abs().max() == 0


def test_layers_add_up_and_large_maps_are_pooled():
    one = attention_distance([OWN], [TEACHER])
    large = TEACHER.repeat_interleave(2, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(attention_distance([OWN, OWN], [TEACHER, large]), 2 * one)


def test_refusals():
    with pytest.raises(ValueError, match=r"power=0\.0 must be > 0"):
        AttentionTransfer(power=0.0)
    with pytest.raises(ValueError, match=r"The layers 0 have the shape \(2, 3\), without places"):
        attention_distance([torch.ones(2, 3)], [torch.ones(2, 3)])
