"""Several averages of a network, of whose weights each is given a part at a time."""

import torch
from torch import nn

from lightning_objectives._weights import shadows
from lightning_objectives._weights.averages import Averages
from lightning_objectives._weights.journal import parts as parts_of
from lightning_objectives.averaging import BEMA, EMA, SWA
from lightning_objectives.kinds import Rule


class Whole(Rule):
    """Not by tensor: it divides by the norm of all."""

    def update(self, state, params, *, step, start=0):
        norm = torch.stack([p.norm() for p in params]).norm()
        torch._foreach_copy_(state.slots["average"], [p / norm for p in params])
        state.updates += 1


def run(rules, part, monkeypatch):
    monkeypatch.setattr(shadows, "_PART", part)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    averages = Averages(net, rules)
    for _ in range(4):
        with torch.no_grad():
            for p in net.parameters():
                p += torch.randn_like(p)
        averages.update(1)
    return averages


def test_parts_make_no_difference(monkeypatch):
    for extra in ({}, {"whole": Whole()}):
        rules = {"ema": EMA(decay=0.5), "bema": BEMA(), "swa": SWA(), **extra}
        parts, at_once = (run(rules, part, monkeypatch) for part in (7, 10**6))
        for name in rules:
            assert parts.states[name].updates == at_once.states[name].updates == 4
            for mine, other in zip(parts.weights(name).values(), at_once.weights(name).values(), strict=True):
                assert torch.equal(mine, other)


def test_a_part_is_as_large_as_allowed():
    sizes = (2, 2, 2, 2, 5, 0, 1)
    groups = parts_of([torch.empty(size) for size in sizes], 4)
    assert [sizes[group] for group in groups] == [(2, 2), (2, 2), (5,), (0, 1)]
