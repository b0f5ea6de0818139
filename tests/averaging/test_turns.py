"""Averages of a network whose parts are stepped by several optimizers, as those of a GAN."""

import copy

import pytest
import torch
from torch import nn

from lightning_objectives._weights.averages import Averages
from lightning_objectives._weights.timing import Timing
from lightning_objectives.averaging import BEMA, EMA, SWA
from lightning_objectives.kinds import Rule

RULES = {"ema": EMA(decay=0.5), "warm": EMA(decay=0.9, warmup=True), "swa": SWA(), "bema": BEMA()}


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(3, 2), nn.Linear(2, 4)
        self.two.register_buffer("level", torch.zeros(2))


def train(net, plan, optimizers, averages, part=None):
    """Take the steps of a plan, "1", "2" or "12" in each batch; only those of ``part``, if given."""
    for batch, who in enumerate(plan):
        for number, half, optimizer in (("1", net.one, optimizers[0]), ("2", net.two, optimizers[1])):
            generator = torch.Generator().manual_seed(100 * batch + int(number))
            if number in who and part in (None, number):
                for p in half.parameters():
                    p.grad = torch.randn(p.shape, generator=generator)
                optimizer.step()
                net.two.level += 1.0 if number == "2" else 0.0
        averages.update()


def start(rules=RULES, **settings):
    net = Pair()
    averages = Averages(net, rules, **settings)
    optimizers = [torch.optim.SGD(half.parameters(), lr=0.1) for half in (net.one, net.two)]
    averages.watch(optimizers)
    return net, optimizers, averages


PLAN = ["1", "1", "2", "12", "1", "2", "", "1", "12", "1", "1"]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("plan", [PLAN, ["2", *PLAN], ["12"] * 5])
def test_each_half_has_the_average_that_it_would_have_alone(plan, every):
    net, optimizers, averages = start(timing=Timing(every_n_steps=every))
    train(net, plan, optimizers, averages)
    for part, half in (("1", "one"), ("2", "two")):
        alone_net, alone_optimizers, alone = start(timing=Timing(every_n_steps=every))
        train(alone_net, plan, alone_optimizers, alone, part=part)
        for name in RULES:
            mine, other = averages.weights(name), alone.weights(name)
            for key in [key for key in mine if key.startswith(half)]:
                torch.testing.assert_close(mine[key], other[key], rtol=0, atol=1e-6)


def test_the_half_that_rests_keeps_its_average_to_the_bit():
    """By hand: the average of (1, 2) with a decay of 1/2 is 1.5, and stays so."""
    net = Pair()
    averages = Averages(net, {"ema": EMA(decay=0.5)})
    optimizers = [torch.optim.SGD(half.parameters(), lr=1.0) for half in (net.one, net.two)]
    averages.watch(optimizers)
    with torch.no_grad():
        net.two.bias.zero_()
    for _ in range(2):
        net.two.bias.grad = -torch.ones(4)
        optimizers[1].step()
        averages.update()
    assert averages.weights("ema")["two.bias"].tolist() == [1.5] * 4
    for _ in range(10):
        net.one.bias.grad = torch.ones(2)
        optimizers[0].step()
        averages.update()
    assert averages.weights("ema")["two.bias"].tolist() == [1.5] * 4
    assert averages.steps == averages.updates + 2 == 12


def test_a_parameter_of_both_optimizers_moves_with_either():
    net = Pair()
    optimizers = [
        torch.optim.SGD(net.one.parameters(), lr=1.0),
        torch.optim.SGD([*net.two.parameters(), net.one.bias], lr=1.0),
    ]
    averages = Averages(net, {"swa": SWA()})
    averages.watch(optimizers)
    with torch.no_grad():
        net.one.bias.zero_()
    for optimizer in (optimizers[0], optimizers[1], optimizers[1]):
        net.one.bias.grad = -torch.ones(2)
        optimizer.step()
        averages.update()
    assert averages.weights("swa")["one.bias"].tolist() == [2.0, 2.0], "the mean of 1, 2 and 3"


def test_buffers_are_averaged_at_each_step():
    net, optimizers, averages = start({"swa": SWA()}, buffers="average")
    train(net, ["1", "2", "1", "12"], optimizers, averages)
    torch.testing.assert_close(averages.weights("swa")["two.level"], torch.tensor([1.0, 1.0]))  # of 0, 1, 1, 2


@pytest.mark.parametrize("cut", range(1, len(PLAN)))
def test_going_on_from_a_state_is_going_on(cut):
    net, optimizers, averages = start(timing=Timing(every_n_steps=2))
    train(net, PLAN, optimizers, averages)
    first, first_optimizers, before = start(timing=Timing(every_n_steps=2))
    train(first, PLAN[:cut], first_optimizers, before)
    state = copy.deepcopy(before.state_dict())
    second = Pair()
    second.load_state_dict(first.state_dict())
    after = Averages(second, RULES, timing=Timing(every_n_steps=2))
    after.load_state_dict(state)
    again = [torch.optim.SGD(half.parameters(), lr=0.1) for half in (second.one, second.two)]
    after.watch(again)
    train(second, [""] * cut + PLAN[cut:], again, after)
    for name in RULES:
        assert all(torch.equal(after.weights(name)[key], value) for key, value in averages.weights(name).items())


def test_a_state_without_parts_goes_on_with_all_steps_for_each_part():
    net, optimizers, averages = start()
    train(net, ["12"] * 3, optimizers, averages)
    state = {key: value for key, value in averages.state_dict().items() if key != "turns"}
    other, other_optimizers, after = start()
    other.load_state_dict(net.state_dict())
    after.load_state_dict(state)
    for run in ((net, PLAN, optimizers, averages), (other, PLAN, other_optimizers, after)):
        train(*run)
    for name in RULES:
        assert all(torch.equal(after.weights(name)[key], value) for key, value in averages.weights(name).items())


def test_the_average_that_stands_in_the_network_is_the_same_after_unwatching():
    net, optimizers, averages = start()
    train(net, PLAN, optimizers, averages)
    expected = {name: {k: v.clone() for k, v in averages.weights(name).items()} for name in RULES}
    averages.unwatch()
    net.double().float()
    for name in RULES:
        averages.swap_in(name, exchange=True)
        for key, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name][key], rtol=0, atol=1e-6)
        averages.swap_out()


def test_a_parameter_that_comes_after_unwatching_is_read_too():
    net, optimizers, averages = start()
    train(net, PLAN, optimizers, averages)
    averages.unwatch()
    net.two = nn.Sequential(net.two)
    net.three = nn.Linear(2, 2)
    for name in RULES:
        assert torch.equal(averages.weights(name)["three.weight"], net.three.weight)
        averages.swap_in(name)
        averages.swap_out()


def test_parameters_that_join_an_optimizer_move_with_it():
    net = Pair()
    net.two.requires_grad_(False)
    optimizers = [torch.optim.SGD([net.one.weight], lr=1.0), torch.optim.SGD([net.one.bias], lr=1.0)]
    averages = Averages(net, {"ema": EMA(decay=0.5)})
    averages.watch(optimizers)
    net.two.requires_grad_(True)
    optimizers[1].add_param_group({"params": [*net.two.parameters()]})
    with torch.no_grad():
        net.two.bias.zero_()
    for at in (1, 1, 0, 0):
        net.two.bias.grad = None if at == 0 else -torch.ones(4)
        net.one.weight.grad = net.one.bias.grad = None
        optimizers[at].step()
        averages.update()
    # It was 0 before its first step, and the average is a copy of that.
    assert averages.weights("ema")["two.bias"].tolist() == [1.5] * 4


class Whole(Rule):
    def update(self, state, params, *, step, start=0):
        torch._foreach_copy_(state.slots["average"], list(params))
        state.updates += 1


def test_a_rule_that_needs_all_weights_says_that_parts_do_not_rest():
    net, averages = Pair(), None
    averages = Averages(net, {"whole": Whole(), "ema": EMA(decay=0.5)})
    optimizers = [torch.optim.SGD(half.parameters(), lr=0.1) for half in (net.one, net.two)]
    with pytest.warns(UserWarning, match=r"2 optimizers take turns, but \[Whole\(\)\] can only average all weights"):
        averages.watch(optimizers)
    train(net, PLAN, optimizers, averages)
    assert averages.states["whole"].updates == len([who for who in PLAN if who])
    alone_net, alone_optimizers, alone = start({"ema": EMA(decay=0.5)})
    train(alone_net, PLAN, alone_optimizers, alone)
    assert all(torch.equal(alone.weights("ema")[k], v) for k, v in averages.weights("ema").items())
