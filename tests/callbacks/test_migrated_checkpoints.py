"""Trainings that go on from an older module's checkpoint, whose weights ``on_load_checkpoint`` renames or converts."""

import copy

import pytest
import torch
from average_checkpoint_nets import cast, renamed
from averaging_nets import Net, equal, fit, flat, loader
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks import AverageWeights

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")
RULES = [EMA(decay=0.5), BEMA()]


def both():
    return [AverageWeights(RULES), AverageWeights(EMA(decay=0.9), primary=False)]


def saved(tmp_path, net, *callbacks):
    """The file after the first of two epochs."""
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(*callbacks, saver, net=net)
    return tmp_path / "epoch=0.ckpt"


class Renamed(Net):
    """The same network, in which ``layers`` has become ``body``."""

    def __init__(self):
        super().__init__()
        self.body = self.layers
        del self.layers

    def forward(self, x):
        return self.body(x)

    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"] = {k.replace("layers.", "body."): v for k, v in checkpoint["state_dict"].items()}


class InPlace(Renamed):
    def on_load_checkpoint(self, checkpoint):
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith("layers.")]:
            state[key.replace("layers.", "body.")] = state.pop(key)
        checkpoint["callbacks"].pop("nothing", None)


class OnInstance(Renamed):
    def __init__(self):
        super().__init__()
        hook = super().on_load_checkpoint
        self.on_load_checkpoint = lambda checkpoint: hook(checkpoint)


class Transposed(Net):
    """Keeps the first weight the other way round."""

    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        with torch.no_grad():
            self.layers[0].weight.copy_(self.layers[0].weight.t().clone())

    def forward(self, x):
        first, *rest = self.layers
        return nn.Sequential(*rest)(x @ first.weight + first.bias)

    def on_load_checkpoint(self, checkpoint):
        state = checkpoint["state_dict"]
        state["layers.0.weight"] = state["layers.0.weight"].t().clone()
        momentum = checkpoint["optimizer_states"][0]["state"][0]
        momentum["momentum_buffer"] = momentum["momentum_buffer"].t().clone()
        assert "turned" not in momentum, "each run of the hook sees the checkpoint as it was"
        momentum["turned"] = True


def ordered(net, tensors=None):
    """The weights in the form of the old module."""
    tensors = {k: v.detach() for k, v in net.named_parameters()} if tensors is None else tensors
    turned = isinstance(net, Transposed)
    return {
        k.replace("body.", "layers."): v.t() if turned and k == "layers.0.weight" else v for k, v in tensors.items()
    }


@pytest.mark.parametrize("new", [Renamed, InPlace, OnInstance, Transposed])
def test_the_averages_follow_the_hook(tmp_path, new):
    old = Net(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)) if new is Transposed else Net()
    whole, (first, second) = old, both()
    file = saved(tmp_path, whole, first, second)
    one, two = both()
    net = new()
    fit(one, two, net=net, ckpt_path=file)
    atol = 1e-6 if new is Transposed else 0.0  # The order of a sum changes.
    pairs = [(ordered(net), dict(whole.named_parameters()))]
    pairs += [(ordered(net, one.weights(name)), first.weights(name)) for name in ("ema", "bema", "raw")]
    pairs += [(ordered(net, two.weights("ema")), second.weights("ema"))]
    for mine, expected in pairs:
        assert mine.keys() == expected.keys()
        for key, value in mine.items():
            torch.testing.assert_close(value, expected[key].detach(), rtol=0, atol=atol)


def test_weights_that_the_hook_adds_join_and_those_that_it_drops_are_gone(tmp_path):
    class Scaled(Renamed):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.body[2] = nn.Linear(3, 1, bias=False)

        def forward(self, x):
            return self.scale * self.body(x)

        def on_load_checkpoint(self, checkpoint):
            super().on_load_checkpoint(checkpoint)
            checkpoint["state_dict"]["scale"] = torch.full((1,), 2.0)
            del checkpoint["state_dict"]["body.2.bias"]
            checkpoint["optimizer_states"][0] = self.configure_optimizers().state_dict()

    file = saved(tmp_path, Net(), *both())
    one, two = both()
    net = Scaled()
    seen = []
    net.on_train_start = lambda: seen.append(copy.deepcopy({**one.weights("ema"), "raw": net.body[0].weight.data}))
    fit(one, two, net=net, ckpt_path=file)
    held = torch.load(file, weights_only=True)
    (state,) = [s for key, s in held["callbacks"].items() if key.startswith("AverageWeights") and s["raw"]]
    assert torch.equal(seen[0]["raw"], state["raw"]["layers.0.weight"])
    assert torch.equal(seen[0]["body.0.weight"], held["state_dict"]["layers.0.weight"])
    assert seen[0]["scale"].item() == 2.0
    assert set(one.weights("ema")) == {"scale", "body.0.weight", "body.0.bias", "body.2.weight"}


class Undone(Net):
    """Saves its weights in another form, and undoes that when it loads them."""

    def on_load_checkpoint(self, checkpoint):
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k.removeprefix("net."): v.float() for k, v in state.items()}


def turned(self, checkpoint):
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {k: -v for k, v in state.items()}


def turned_back(self, checkpoint):
    turned(self, checkpoint)


@pytest.mark.parametrize("save", [renamed, cast, turned])
def test_a_hook_that_undoes_another_leaves_the_averages_alone(tmp_path, save):
    hooks = {"on_save_checkpoint": save} | ({"on_load_checkpoint": turned_back} if save is turned else {})
    make = type("Made", (Undone,), hooks)
    whole, first = make(), AverageWeights(RULES)
    file = saved(tmp_path, whole, first)
    net, one = make(), AverageWeights(RULES)
    fit(one, net=net, ckpt_path=file)
    assert equal(net, whole)
    assert all(equal(one.weights(name), first.weights(name)) for name in ("ema", "bema", "raw"))


def test_what_cannot_be_told_is_said(tmp_path):
    make = type("Made", (Undone,), {"on_save_checkpoint": turned, "on_load_checkpoint": turned_back})
    whole, first = make(), AverageWeights(RULES, primary=False)
    file = saved(tmp_path, whole, first)
    net, one = make(), AverageWeights(RULES, primary=False)
    with pytest.warns(
        UserWarning, match=r"Made\.on_load_checkpoint changes \['layers\.0\.bias', .* as if the hook undid"
    ):
        fit(one, net=net, ckpt_path=file)
    assert all(equal(one.weights(name), first.weights(name)) for name in ("ema", "bema"))


def test_a_hook_that_runs_only_once_is_refused_with_the_reason(tmp_path):
    class Once(Renamed):
        def on_load_checkpoint(self, checkpoint):
            if hasattr(self, "loaded"):
                raise KeyError("twice")
            self.loaded = True
            super().on_load_checkpoint(checkpoint)

    file = saved(tmp_path, Net(), AverageWeights(RULES))
    with pytest.raises(RuntimeError, match=r"Once\.on_load_checkpoint changes .* it fails: KeyError\('twice'\)"):
        fit(AverageWeights(RULES), net=Once(), ckpt_path=file)


def test_nothing_is_left_on_the_module_and_evaluation_runs_the_hook_once(tmp_path):
    file = saved(tmp_path, Net(), AverageWeights(RULES))
    net, averages = Renamed(), AverageWeights(RULES)
    _, runner = fit(averages, net=net, ckpt_path=file)
    assert "on_load_checkpoint" not in vars(net)
    calls = []
    net.on_load_checkpoint = lambda checkpoint: (calls.append(1), Renamed.on_load_checkpoint(net, checkpoint))
    runner.validate(net, loader(), ckpt_path=file, verbose=False)
    assert calls == [1]
    expected = torch.load(file, weights_only=True)["state_dict"]
    assert torch.equal(flat(net), torch.cat([v.flatten() for v in expected.values()]))
