"""Weights and averages that change places for a validation."""

import pytest
import torch
from averaging_nets import NormNet, equal, fit
from torch import nn

from lightning_objectives._weights.averages import Averages
from lightning_objectives.averaging import BEMA, EMA, SWA
from lightning_objectives.callbacks.average_weights import AverageWeights

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")


def exchanged_run(monkeypatch, *rules, **kwargs):
    """A fit with validations, and the same with the weights copied instead; the callback of each, and what was seen."""
    found, plain_swap = [], Averages.swap_in
    for exchange in (True, False):
        if not exchange:
            monkeypatch.setattr(Averages, "swap_in", lambda self, name, exchange=False: plain_swap(self, name))
        averages = AverageWeights(list(rules), **kwargs)
        found.append((averages, *fit(averages, net=NormNet(), val=True)))
    return found


@pytest.mark.parametrize("buffers", ["copy", "average", "recalibrate"])
@pytest.mark.parametrize("rules", [(EMA(decay=0.8),), (SWA(), BEMA()), (BEMA(), EMA(decay=0.8))])
def test_weights_that_change_places_are_those_that_were_copied(monkeypatch, rules, buffers):
    (one, net, _), (other, reference, _) = exchanged_run(monkeypatch, *rules, buffers=buffers)
    assert equal(net.path, reference.path)
    assert equal(net.seen, reference.seen)
    assert equal(net, reference)
    for name in (*one.names, "raw"):
        assert equal(one.weights(name), other.weights(name))


def test_no_copy_of_the_model_is_made_while_an_average_stands_in_it():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    averages = Averages(net, {"ema": EMA(decay=0.5), "bema": BEMA()})
    with torch.no_grad():
        net[0].weight += 1
    averages.update(1)
    with torch.no_grad():
        net[0].weight += 1
    averages.update(1)
    shadows = [tensor.data_ptr() for tensor in averages.states["ema"].slots["average"]]
    raw = {name: p.detach().clone() for name, p in net.named_parameters()}
    average = [tensor.clone() for tensor in averages.states["ema"].slots["average"]]
    averages.swap_in("ema", exchange=True)
    assert [averages.journal.held[name].data_ptr() for name in averages.names] == shadows
    assert equal(average, [p.detach() for p in net.parameters()])
    assert equal(averages.weights("raw"), raw)
    assert equal(averages.state_dict()["raw"], raw)
    assert equal(list(averages.weights("ema").values()), average)
    averages.swap_out()
    assert [tensor.data_ptr() for tensor in averages.states["ema"].slots["average"]] == shadows
    assert equal(average, averages.states["ema"].slots["average"])
    assert equal(raw, {name: p.detach() for name, p in net.named_parameters()})
    assert not averages.journal.held
    assert not averages.journal._spare


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(24))
def test_an_interrupt_on_the_way_loses_neither(monkeypatch, at, after):
    """Copies are counted, of four pieces there and back; one is stopped, before it or as soon as it is made."""
    monkeypatch.setattr("lightning_objectives._weights.journal._PIECE", {"cpu": 3})
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    averages = Averages(net, {"ema": EMA(decay=0.5)})
    for _ in range(2):
        with torch.no_grad():
            for p in net.parameters():
                p += torch.randn_like(p)
        averages.update(1)
    raw = {name: p.detach().clone() for name, p in net.named_parameters()}
    average = {name: tensor.clone() for name, tensor in averages.weights("ema").items()}
    calls, copy = [0], torch._foreach_copy_

    def stopped(to, source):
        calls[0] += 1
        if calls[0] == at + 1:
            if after:
                copy(to, source)
            raise KeyboardInterrupt
        return copy(to, source)

    monkeypatch.setattr(torch, "_foreach_copy_", stopped)

    def there_and_back():
        averages.swap_in("ema", exchange=True)
        averages.swap_out()

    with pytest.raises(KeyboardInterrupt):
        there_and_back()
    monkeypatch.setattr(torch, "_foreach_copy_", copy)
    averages.swap_out()
    assert equal(raw, {name: p.detach() for name, p in net.named_parameters()})
    assert equal(average, averages.weights("ema"))


def test_a_module_that_is_cast_while_an_average_stands_in_it():
    net = nn.Linear(3, 2)
    averages = Averages(net, {"ema": EMA(decay=0.5)})
    for _ in range(2):
        with torch.no_grad():
            net.weight += 1
        averages.update(1)
    average, raw = averages.weights("ema")["weight"].clone(), net.weight.detach().clone()
    averages.swap_in("ema", exchange=True)
    net.double()
    averages.swap_out()
    torch.testing.assert_close(net.weight.detach(), raw.double(), rtol=0, atol=0)
    torch.testing.assert_close(averages.weights("ema")["weight"], average.double(), rtol=0, atol=0)


def test_an_exchange_is_planned_once_and_holds_on_to_nothing_that_was_replaced():
    net = nn.Linear(3, 2)
    averages = Averages(net, {"ema": EMA(decay=0.5)})
    averages.update(1)
    averages.swap_in("ema", exchange=True)
    plan = averages.journal._planned
    averages.swap_out()
    averages.update(1)
    averages.swap_in("ema", exchange=True)
    averages.swap_out()
    assert averages.journal._planned is plan is not None
    net.double()
    averages.update(1)
    assert averages.journal._planned is None


def test_another_average_on_top_of_one_that_changed_places():
    net = nn.Linear(3, 2)
    averages = Averages(net, {"ema": EMA(decay=0.5), "bema": BEMA(bias_power=0.0)})
    for _ in range(2):
        with torch.no_grad():
            net.weight += 1
        averages.update(1)
    raw = net.weight.detach().clone()
    ema, bema = (averages.weights(name)["weight"].clone() for name in ("ema", "bema"))
    assert not torch.equal(ema, bema)
    averages.swap_in("ema", exchange=True)
    with averages.applied("bema"):
        assert torch.equal(net.weight, bema)
        assert torch.equal(averages.weights("ema")["weight"], ema)
    assert torch.equal(net.weight, ema)
    averages.swap_out()
    assert torch.equal(net.weight, raw)
    assert torch.equal(averages.weights("ema")["weight"], ema)


def test_each_average_changes_places_by_a_plan_of_its_own():
    net = nn.Linear(3, 2)
    averages = Averages(net, {"slow": EMA(decay=0.9), "fast": EMA(decay=0.1)})
    for _ in range(2):
        with torch.no_grad():
            net.weight += 1
        averages.update(1)
    raw = net.weight.detach().clone()
    slow, fast = (averages.weights(name)["weight"].clone() for name in ("slow", "fast"))
    assert not torch.equal(slow, fast)
    for name, average in (("slow", slow), ("fast", fast), ("slow", slow)):
        averages.swap_in(name, exchange=True)
        assert torch.equal(net.weight, average)
        averages.swap_out()
        assert torch.equal(net.weight, raw)


@pytest.mark.parametrize("exchange", [False, True])
def test_a_step_while_an_average_stands_in_the_network_is_an_error(exchange):
    averages = Averages(nn.Linear(3, 2), {"ema": EMA(decay=0.5)})
    averages.update(1)
    averages.swap_in("ema", exchange=exchange)
    with pytest.raises(RuntimeError, match="so it changed the average instead of the raw weights"):
        averages.update(1)
    averages.swap_out()
    averages.update(1)
    assert averages.steps == 2
