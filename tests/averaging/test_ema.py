import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_objectives.averaging import EMA, ema_decay


def walk(rule, steps, references=()):
    """Random weights for some steps, into the rule and into the references; the weights read and the live ones."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    for make in references:
        make(net)
    state = rule.init([p.detach() for p in net.parameters()])
    for step in range(1, steps + 1):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        for make in references:
            make(net, step)
        rule.update(state, [p.detach() for p in net.parameters()], step=step)
    return rule.read(state, [], step=steps), [p.detach() for p in net.parameters()]


class Reference:
    """Another library's average, fed by `walk`."""

    def __init__(self, make, update):
        self.make, self.feed = make, update

    def __call__(self, net, step=None):
        if step is None:
            self.average = self.make(net)
        else:
            self.feed(self.average, net, step)


def test_it_agrees_with_torchs_averaged_model():
    theirs = Reference(
        lambda net: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.8)),
        lambda a, net, step: a.update_parameters(net),
    )
    mine, _ = walk(EMA(decay=0.8), 12, [theirs])
    for a, b in zip(mine, theirs.average.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("mine", "timms"), [({}, {}), ({"power": 1.0}, {"warmup_power": 1.0})])
def test_the_warm_up_agrees_with_timms(mine, timms):
    theirs = Reference(
        lambda net: ModelEmaV3(net, decay=0.9, use_warmup=True, **timms),
        lambda average, net, step: average.update(net, step=step),
    )
    average, _ = walk(EMA(decay=0.9, warmup=True, **mine), 60, [theirs])
    for a, b in zip(average, theirs.average.module.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_warm_up_by_hand():
    assert [round(ema_decay(n, warmup=True, power=1.0), 6) for n in (1, 2, 3, 4)] == [0, 0.5, 0.666667, 0.75]
    assert ema_decay(5, decay=0.5, warmup=True, power=1.0) == 0.5


def test_power_one_is_the_plain_mean():
    ema = EMA(decay=1 - 1e-9, warmup=True, power=1.0)
    state = ema.init([torch.tensor([100.0])])
    for step, value in enumerate([1.0, 2.0, 6.0], start=1):
        ema.update(state, [torch.tensor([value])], step=step)
    assert state.slots["average"][0].item() == pytest.approx(3.0)


def test_the_warm_up_counts_from_where_the_average_began():
    """The second update since step 100 is a mean of two, and that of step 102 alone would keep 101/102."""
    ema = EMA(decay=0.999, warmup=True, power=1.0)
    state = ema.init([torch.tensor([100.0])])
    for step, value in ((101, 4.0), (102, 8.0)):
        ema.update(state, [torch.tensor([value])], step=step, start=100)
    assert state.slots["average"][0].item() == pytest.approx(6.0)
    assert state.updates == 2


def test_the_first_update_copies_and_the_second_does_not():
    ema = EMA(decay=0.75)
    state = ema.init([torch.tensor([100.0])])
    ema.update(state, [torch.tensor([4.0])], step=1)
    assert ema.read(state, [], step=1)[0].item() == 4.0
    ema.update(state, [torch.tensor([8.0])], step=2)
    assert ema.read(state, [], step=2)[0].item() == 5.0


def test_no_decay_is_the_live_weights_to_the_bit():
    mine, live = walk(EMA(decay=0.0), 5)
    assert all(torch.equal(a, b) for a, b in zip(mine, live))


@pytest.mark.parametrize(
    ("settings", "message"), [({"decay": 1.0}, "decay=1.0 must be"), ({"power": 0}, "power=0 must")]
)
def test_settings_outside_their_range(settings, message):
    with pytest.raises(ValueError, match=message):
        EMA(**settings)
