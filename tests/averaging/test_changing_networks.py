"""Averages of networks whose tensors are replaced, resized, late, shared, infinite or without a gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_objectives._weights.averages import Averages
from lightning_objectives.averaging import BEMA, EMA, SWA


def stepped(averages, net, times=1):
    for _ in range(times):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        averages.update(1)


def of_path(rule, path):
    """What a rule makes of a tensor that took these values, the first before any step."""
    state = rule.init([path[0]])
    for step, value in enumerate(path[1:], start=1):
        rule.update(state, [value], step=step)
    return rule.read(state, [path[-1]], step=len(path) - 1)[0]


RULES = pytest.mark.parametrize("rule", [EMA(decay=0.5), SWA(), BEMA()], ids=lambda r: type(r).__name__)


# Parameters


@RULES
@pytest.mark.parametrize("what", ["parameter", "module", "assigned", "data"])
def test_a_parameter_that_is_replaced_is_followed_by_its_name(rule, what):
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    averages = Averages(net, {"a": rule})
    path = [net[0].weight.detach().clone()]
    for step in range(6):
        if step == 3:
            new = torch.randn(2, 3)
            if what == "parameter":
                net[0].weight = nn.Parameter(new)
            elif what == "module":
                net[0] = nn.Linear(3, 2)
            elif what == "assigned":
                net.load_state_dict({**net.state_dict(), "0.weight": new}, assign=True)
            else:
                net[0].weight.data = new
        stepped(averages, net)
        path.append(net[0].weight.detach().clone())
    raw = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert torch.equal(averages.weights("a")["0.weight"], of_path(rule, path))
    assert averages.names == [name for name, _ in net.named_parameters()]
    averages.swap_in("a", exchange=True)
    assert torch.equal(net[0].weight, of_path(rule, path))
    averages.swap_out()
    assert all(torch.equal(p, raw[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("exchange", [True, False])
def test_a_parameter_that_is_replaced_while_an_average_stands_there(exchange):
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    averages = Averages(net, {"a": EMA(decay=0.5)})
    stepped(averages, net, 3)
    raw, average = net[0].weight.detach().clone(), averages.weights("a")["0.weight"].clone()
    averages.swap_in("a", exchange=exchange)
    net[0].weight = nn.Parameter(net[0].weight.detach().clone())
    averages.swap_out()
    assert torch.equal(net[0].weight, raw)
    assert torch.equal(averages.weights("a")["0.weight"], average)
    assert not averages.journal.held


@RULES
def test_a_parameter_that_is_resized_begins_anew_and_says_so(rule):
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    averages, other = (Averages(net, {"a": rule}) for _ in range(2))
    stepped(averages, net, 2)
    net[0].weight.data = torch.randn(5, 3)
    path = [net[0].weight.detach().clone()]
    with pytest.warns(UserWarning, match=r"0\.weight changed its shape from \(2, 3\) to \(5, 3\).*begins anew"):
        stepped(averages, net)
    assert averages.weights("a")["0.weight"].shape == (5, 3)
    del other
    net[0].weight.data = net[0].weight.data[:1]  # in the same memory
    with pytest.warns(UserWarning, match=r"from \(5, 3\) to \(1, 3\)"):
        assert torch.equal(averages.weights("a")["0.weight"], net[0].weight)
    assert path[0].shape == (5, 3)


def test_a_parameter_that_is_gone_is_dropped_and_a_renamed_one_keeps_its_average():
    net = nn.ModuleDict({"old": nn.Linear(3, 2), "gone": nn.Linear(2, 1)})
    averages = Averages(net, {"a": EMA(decay=0.5)})
    stepped(averages, net, 2)
    before = averages.weights("a")
    net["new"] = net.pop("old")
    del net["gone"]
    assert averages.weights("a").keys() == {"new.weight", "new.bias"}
    assert torch.equal(averages.weights("a")["new.weight"], before["old.weight"])
    stepped(averages, net)
    fresh = Averages(net, {"a": EMA(decay=0.5)})
    fresh.load_state_dict(averages.state_dict())
    assert torch.equal(fresh.weights("a")["new.bias"], averages.weights("a")["new.bias"])


@pytest.mark.parametrize("piece", [2, 2**19])
@pytest.mark.parametrize("view", ["whole", "part"])
def test_parameters_that_share_memory_change_places_and_come_back(monkeypatch, piece, view):
    monkeypatch.setattr("lightning_objectives._weights.journal._PIECE", {"cpu": piece})
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight.data = net[0].weight.data if view == "whole" else net[0].weight.data[1:]
    averages = Averages(net, {"a": EMA(decay=0.5)})
    stepped(averages, net, 3)
    raw = [p.detach().clone() for p in net.parameters()]
    average = [t.clone() for t in averages.weights("a").values()]
    for _ in range(2):
        averages.swap_in("a", exchange=True)
        assert all(torch.equal(p, a) for p, a in zip(net.parameters(), average))
        averages.swap_out()
        assert all(torch.equal(p, r) for p, r in zip(net.parameters(), raw))
        assert all(torch.equal(t, a) for t, a in zip(averages.weights("a").values(), average))


def test_a_weight_that_needs_no_gradient_is_averaged_if_it_is_stepped():
    net = nn.Linear(2, 1).requires_grad_(False)
    optimizer, averages = torch.optim.SGD(net.parameters(), 1.0), Averages(net, {"a": SWA()})
    averages.watch([optimizer])
    path = [net.weight.clone()]
    for _ in range(3):
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        averages.update()
        path.append(net.weight.clone())
    assert torch.equal(averages.weights("a")["weight"], of_path(SWA(), path))


def test_a_step_with_nothing_to_average_says_so():
    averages = Averages(nn.Linear(2, 1).requires_grad_(False), {"a": SWA()})
    with pytest.raises(
        RuntimeError, match="no parameter of Linear requires a gradient or has one, so there is nothing"
    ):
        averages.update(1)


# Buffers


VALUES = st.lists(st.sampled_from([0.0, 1.5, -2.0, float("inf"), float("-inf"), float("nan")]), min_size=2, max_size=8)


@given(VALUES, st.sampled_from([EMA(decay=0.3), EMA(decay=0.9), SWA(), BEMA()]))
def test_a_buffer_averages_what_is_finite_and_takes_the_newest_where_one_side_is_not(values, rule):
    net = nn.BatchNorm1d(1)
    net.running_mean.fill_(values[0])
    averages = Averages(net, {"a": rule}, buffers="average")
    state = rule.init([torch.tensor([values[0]])])
    for step, value in enumerate(values[1:], start=1):
        net.running_mean.fill_(value)
        averages.update(1)
        before = state.slots["average"][0].clone()
        newest = torch.tensor([value])
        rule.update(state, [newest], step=step)
        if not (before.isfinite() and newest.isfinite()):
            state.slots["average"][0].copy_(newest)
    torch.testing.assert_close(averages.weights("a")["running_mean"], state.slots["average"][0], equal_nan=True)


class Masked(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        self.register_buffer("low", torch.tensor(float("inf")))


@pytest.mark.parametrize("buffers", ["copy", "average", "recalibrate"])
def test_infinities_of_masks_and_of_observers_stay_or_become_what_was_observed(buffers):
    net = Masked()
    averages = Averages(net, {"a": EMA(decay=0.5), "b": SWA()}, buffers=buffers, passes=lambda norms: None)
    stepped(averages, net)
    net.low = torch.tensor(2.0)
    stepped(averages, net)
    for name in ("a", "b"):
        with averages.applied(name):
            assert torch.equal(net.mask, torch.full((3, 3), float("-inf")).triu(1))
            assert net.low == 2.0


class Table(nn.Linear):
    """Makes a buffer when it runs for the first time."""

    def forward(self, x):
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.ones(len(x), 1), persistent=False)
        return super().forward(x + self.table)


@RULES
@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("kind", ["table", "lazy", "resized"])
def test_a_buffer_that_comes_late(rule, buffers, kind):
    net = nn.Sequential(nn.LazyBatchNorm1d() if kind == "lazy" else nn.Identity(), Table(3, 2))
    averages = Averages(net, {"a": rule}, buffers=buffers)
    for step in range(3):
        net(torch.randn(4, 3)).sum().backward()
        if kind == "resized" and step:
            net[1].table = torch.ones(4, 3 if step == 1 else 1)
        if step == 0:
            optimizer = torch.optim.SGD(net.parameters(), 0.1)
            averages.watch([optimizer])
        optimizer.step()
        averages.update()
    weights = averages.weights("a")
    assert ("1.table" in weights) == (buffers == "average")
    if kind == "lazy":
        assert weights["0.weight"].shape == (3,)
        assert ("0.running_mean" in weights) == (buffers == "average")
    averages.swap_in("a", exchange=True)
    net(torch.randn(4, 3))
    averages.swap_out()
    other = Averages(net, {"a": rule}, buffers=buffers)
    other.load_state_dict(averages.state_dict())
    assert other.weights("a").keys() == weights.keys()


def test_a_buffer_that_is_made_in_a_validation_stays():
    net = Table(3, 2)
    averages = Averages(net, {"a": EMA(decay=0.5)}, buffers="average")
    stepped(averages, net, 2)
    averages.swap_in("a", exchange=True)
    net(torch.randn(4, 3))
    averages.swap_out()
    stepped(averages, net)
    assert torch.equal(averages.weights("a")["table"], torch.ones(4, 1))
