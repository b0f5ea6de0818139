"""An average in a loop of one's own is that of the callback."""

import io

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit, loader
from torch import nn

import lightning_objectives as lo
from lightning_objectives.callbacks import AverageWeights


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        return self.fc(self.norm(self.backbone(x)))


def built(cls=Net):
    torch.manual_seed(0)
    return cls()


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def train(net, optimizer, average=None, epochs=2):
    for _ in range(epochs):
        for x, y in loader():
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if average is not None:
                average.update()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"start_step": 2, "every_n_steps": 2}, {"buffers": "average"}, {"parameters": "fc.*"}, {"device": "cpu"}],
    ids=str,
)
def test_it_is_the_average_of_the_callback_to_the_bit(settings, counted):
    rules = lambda: [lo.BEMA(), lo.EMA(decay=0.5), lo.SWA(), lo.EMA(decay=0.9)]  # noqa: E731  # new ones each time
    callback = AverageWeights(rules(), **settings)
    theirs, _ = fit(callback, net=lambda: built(Normed))
    net = built(Normed)
    optimizer = sgd(net)
    average = lo.Average(net, rules(), optimizer if counted else None, **settings)
    train(net, optimizer, average)
    assert average.names == callback.names == ("bema", "ema", "swa", "ema_2")
    assert average.steps == 6
    now = dict(net.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in callback.weights("raw").items() if name in now)
    for name in average.names:
        assert same(average.weights(name), callback.weights(name))
        assert same(average.averaged_state_dict(name), callback.averaged_state_dict(name))
    with average.applied():
        assert same(net.state_dict(), theirs.state_dict())


def test_recalibrated_statistics_are_those_of_the_callback():
    callback = AverageWeights(lo.EMA(decay=0.5), buffers="recalibrate")
    theirs, _ = fit(callback, net=lambda: built(Normed), val=loader(seed=1), num_sanity_val_steps=0)
    net = built(Normed)
    optimizer = sgd(net)
    passes = lambda: [net(x) for x, _ in loader()]  # noqa: E731
    average = lo.Average(net, lo.EMA(decay=0.5), optimizer, buffers="recalibrate", passes=passes)
    train(net, optimizer, average)
    raw = {k: v.clone() for k, v in net.state_dict().items()}
    assert same(average.averaged_state_dict(), theirs.state_dict())
    assert same(net.state_dict(), raw)
    assert net.training


@pytest.mark.parametrize("fails", [False, True])
def test_the_weights_come_back_to_the_bit(fails):
    net = built(Normed)
    optimizer = sgd(net)
    average = lo.Average(net, lo.EMA(decay=0.5), optimizer, buffers="average")
    train(net, optimizer, average, epochs=1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    places = [p.data_ptr() for p in net.parameters()]
    try:
        with average.applied():
            assert not torch.equal(net.fc.weight, before["fc.weight"])
            net.fc.weight.data += 1
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert same(net.state_dict(), before)
    assert places == [p.data_ptr() for p in net.parameters()]
    train(net, optimizer, average, epochs=1)
    other = built(Normed)
    train(other, sgd(other), epochs=2)
    assert same(dict(net.named_parameters()), dict(other.named_parameters()))


@pytest.mark.parametrize("counted", [False, True])
def test_going_on_from_a_file_is_going_on(counted):
    def made():
        net = built()
        optimizer = sgd(net)
        return net, optimizer, lo.Average(net, [lo.BEMA(), lo.EMA()], optimizer if counted else None, every_n_steps=2)

    whole = made()
    train(*whole, epochs=3)
    first = made()
    train(*first, epochs=1)
    assert first[2].state_dict()["raw"] == {}  # The network's own file has them.
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = made()
    for part, state in zip(second, torch.load(file, weights_only=True)):
        part.load_state_dict(state)
    train(*second, epochs=2)
    for name in whole[2].names:
        assert same(second[2].weights(name), whole[2].weights(name))
    assert (second[2].steps, second[2].updates) == (whole[2].steps, whole[2].updates) == (9, 4)


def test_a_step_that_a_scaler_skips_does_not_count():
    net = built()
    optimizer = sgd(net)
    average = lo.Average(net, lo.EMA(), optimizer)
    average.update()
    assert (average.steps, average.updates) == (0, 0)
    with average.applied():
        assert same(average.averaged_state_dict(), net.state_dict())
    train(net, optimizer, average, epochs=1)
    average.update()
    assert (average.steps, average.updates) == (3, 3)
    average.remove()
    train(net, optimizer, epochs=1)
    average.update()
    assert average.steps == 3


def test_what_would_change_the_average_is_refused():
    net = built()
    average = lo.Average(net, lo.EMA())
    average.update()
    with average.applied():
        with pytest.raises(RuntimeError, match="An optimizer step was taken while an average stood in the network"):
            average.update()
        with pytest.raises(RuntimeError, match="Save outside of the with block"):
            average.state_dict()
    assert average.steps == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": 0.99}, "must be an averaging rule"),
        ({"rule": []}, "must be an averaging rule"),
        ({"buffers": "mean"}, "must be 'copy', 'average' or 'recalibrate'"),
        ({"buffers": "recalibrate"}, "'recalibrate' needs passes="),
        ({"passes": list}, "nothing else takes one"),
        ({"start_step": -1}, "start_step=-1 must be >= 0"),
        ({"every_n_steps": 0}, "every_n_steps=0 must be >= 1"),
        ({"parameters": "nothing.*"}, "matches no parameter"),
        ({"parameters": ""}, "averages nothing"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lo.Average(built(), **{"rule": lo.EMA(), **settings})


def test_names_and_states_that_do_not_fit_are_refused():
    average = lo.Average(built(), lo.EMA())
    for use in (average.weights, average.averaged_state_dict, lambda name: average.applied(name).__enter__()):
        with pytest.raises(ValueError, match=r"name='bema' must be one of \['ema'\]"):
            use("bema")
    average.update()
    with pytest.raises(ValueError, match=r"bema|ema"):
        lo.Average(built(), lo.BEMA()).load_state_dict(average.state_dict())
