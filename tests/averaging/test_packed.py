"""Small tensors that are averaged as one."""

import torch
from torch import nn

from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.averaging._averages import Averages
from lightning_objectives.averaging._packed import Packed


def test_they_are_views_of_one_tensor_in_the_order_of_the_memory():
    image = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    tensors = [torch.ones(2), image, torch.tensor(7.0), torch.zeros(2**15), torch.zeros(0)]
    packed = Packed(tensors)
    large, flat = packed.inputs()
    assert large is tensors[3]
    assert flat.tolist() == [1, 1, *image.permute(0, 2, 3, 1).flatten().tolist(), 7]
    slots = {"average": [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]}
    _, joined = packed.slots("ema", slots)["average"]
    assert torch.equal(joined, flat)
    joined.add_(1)
    for shadow, tensor in zip(slots["average"][:3], tensors):
        assert torch.equal(shadow, tensor + 1)
        assert shadow.stride() == tensor.stride()


def test_a_slot_that_was_replaced_is_joined_anew():
    tensors = [torch.ones(2), torch.ones(3)]
    packed, slots = Packed(tensors), {"average": [torch.zeros(2), torch.zeros(3)]}
    (first,) = packed.slots("ema", slots)["average"]
    assert packed.slots("ema", slots)["average"][0] is first
    slots["average"][1] = torch.full((3,), 5.0)
    (second,) = packed.slots("ema", slots)["average"]
    assert second.tolist() == [0, 0, 5, 5, 5]


def test_what_is_strided_or_alone_of_its_type_stands_alone():
    tensors = [torch.ones(8)[::2], torch.ones(2, dtype=torch.float64), torch.ones(3)]
    assert [a is b for a, b in zip(Packed(tensors).inputs(), tensors)] == [True] * 3


def test_averages_are_those_of_a_loop_over_the_tensors():
    """Beside a formula without any list: small, large, half, tied and frozen weights, moved to another layout."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(200, 200), nn.Linear(4, 4).bfloat16())
    averages = Averages(net, {"ema": EMA(decay=0.75), "bema": BEMA()})
    expected = {name: p.detach().float().clone() for name, p in net.named_parameters()}
    for step in range(6):
        if step == 3:
            net.to(memory_format=torch.channels_last)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        averages.update(1)
        for name, p in net.named_parameters():
            share = 1.0 if step == 0 else 0.25
            expected[name] += share * (p.detach().float() - expected[name])
    found = dict(zip(averages.names, averages.states["ema"].slots["average"]))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)
    assert averages.states["ema"].updates == averages.states["bema"].updates == 6
