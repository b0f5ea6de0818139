"""What users' modules, hooks and other callbacks make of a checkpoint that holds an average."""

import copy
import pickle
import subprocess
import sys
import types
from pathlib import Path

import lightning as L
import pytest
import torch
from average_checkpoint_nets import Classifier, Holder, cast, cloned, rebuilt, renamed
from averaging_nets import Net, ema, equal, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning

from lightning_objectives._trainer.patch import Patch
from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks.add_regularizer import AddRegularizer
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.regularizers import SpectralDecoupling

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")


WITHOUT_US = f"""
import os, sys, traceback
sys.modules["lightning_objectives"] = None
sys.path.insert(0, {str(Path(__file__).parent)!r})
import lightning, torch
for line in sys.stdin:
    path, check = eval(line)
    pid = os.fork()
    if not pid:
        try:
            loaded = torch.load(path, weights_only=False)
            exec(check)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def opens_without_us():
    """Opens a pickle in a new process that cannot import the package, and runs lines on what it holds, ``loaded``.

    The process is a fork of one that has imported Lightning, and none of the modules that are pickled.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WITHOUT_US], text=True, **pipes) as server:

        def opens(path, check):
            print((str(path), check), file=server.stdin, flush=True)
            assert server.stdout.readline() == "0\n", "what was printed says why"

        yield opens
        server.stdin.close()


# Pickles


@pytest.mark.parametrize(
    "callback", [AverageWeights(BEMA()), AddRegularizer(SpectralDecoupling())], ids=lambda c: type(c).__name__
)
def test_a_module_that_is_pickled_in_training_opens_without_the_package(tmp_path, callback, opens_without_us):
    class Save(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            torch.save(pl_module, tmp_path / "module.pt")

    fit(Save(), callback, net=Classifier(), val=True)
    opens_without_us(
        tmp_path / "module.pt",
        "assert loaded.on_save_checkpoint.__self__ is loaded; loaded.on_save_checkpoint({}); loaded.training_step",
    )


def test_a_checkpoint_that_pickles_the_module_opens_without_the_package(tmp_path, opens_without_us):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "x.ckpt")

    fit(AverageWeights(EMA(decay=0.5)), Save(), net=Holder(), epochs=1)
    opens_without_us(tmp_path / "x.ckpt", "assert type(loaded['model']).__name__ == 'Holder'")


def test_an_attribute_of_the_instance_survives_a_pickle_under_several_patches():
    net = Net()
    net.on_train_start = types.MethodType(Net.on_fit_start, net)
    for _ in range(2):
        Patch(net, "on_train_start", lambda inner: "patched")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.on_train_start() is None
        assert other.on_train_start.__func__ is Net.on_fit_start
        assert other.on_train_start.__self__ is other
    assert b"lightning_objectives" not in pickle.dumps(net)
    assert equal(net, Net())


# What hooks make of the file


def saved_average(tmp_path, net, *callbacks, rule=None, weights_only=False, **settings):
    """Save after step 3 of 4; returns the file's content and the average of the plain path by hand."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=weights_only)

    averages = AverageWeights(rule or EMA(decay=0.5), **settings)
    fit(averages, *callbacks, Save(), net=net, epochs=1)
    saved = torch.load(tmp_path / "x.ckpt", weights_only=False)
    path = [*net.path[1:]]
    join = path[0].double()
    for weights in path[1:3]:
        join = 0.5 * join + 0.5 * weights.double()
    names, sizes = zip(*((name, p.numel()) for name, p in net.named_parameters()))
    shapes = [p.shape for p in net.parameters()]
    average = {n: t.view(s).float() for n, t, s in zip(names, join.split(sizes), shapes)}
    raw = {n: t.view(s) for n, t, s in zip(names, path[2].split(sizes), shapes)}
    return saved, average, raw, net


def close(a, b, atol=1e-6):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key].float(), b[key], rtol=0, atol=atol)


def moved(self, checkpoint):
    checkpoint["net"] = self.state_dict()
    checkpoint["state_dict"] = {f"net.{k}": v for k, v in checkpoint["net"].items()}


@pytest.mark.parametrize("hook", [rebuilt, cloned, cast, renamed, moved])
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("buffers", ["copy", "recalibrate"])
def test_whatever_a_hook_builds_the_file_holds_the_average(tmp_path, hook, weights_only, buffers):
    net = type("Hooked", (Net,), {"on_save_checkpoint": hook})()
    saved, average, raw, _ = saved_average(tmp_path, net, weights_only=weights_only, buffers=buffers)
    close({k.removeprefix("net."): v for k, v in saved["state_dict"].items()}, average)
    if hook is moved:
        close(dict(saved["net"]), average)
    if not weights_only:
        (state,) = [s for key, s in saved["callbacks"].items() if key.startswith("AverageWeights")]
        assert equal(dict(state["raw"]), raw)
    plain, _ = fit(net=type("Hooked", (Net,), {"on_save_checkpoint": hook})(), epochs=1)
    assert equal(net.path, plain.path)


def half(net, state):
    return {k: v.bfloat16() for k, v in state.items()}


def transposed(net, state):
    return {k: v.t().contiguous() if v.dim() == 2 else v for k, v in state.items()}


def viewed(net, state):
    return {k: v.t() if v.dim() == 2 else v.view(-1, 1) for k, v in state.items()}


def nested(net, state):
    return {"net": dict(state)}


def dropped(net, state):
    return {k: v for k, v in state.items() if "bias" not in k}


@pytest.mark.parametrize("change", [half, transposed, viewed, nested, dropped])
@pytest.mark.parametrize("rule", [EMA(decay=0.5), [EMA(decay=0.5), BEMA()]])
def test_whatever_a_state_dict_is_made_of_the_file_holds_the_average(tmp_path, change, rule):
    class Changed(Net):
        def state_dict(self):
            return change(self, super().state_dict())

    saved, average, _, net = saved_average(tmp_path, Changed(), rule=rule)
    expected = dict(change(net, average))
    expected = expected["net"] if change is nested else {k: v.float() for k, v in expected.items()}
    state = saved["state_dict"]["net"] if change is nested else saved["state_dict"]
    close(dict(state), expected, atol=1e-2 if change is half else 1e-6)


def test_a_copy_of_raw_weights_that_a_hook_kept_is_refused(tmp_path):
    class Keeps(Net):
        def on_train_batch_end(self, *_):
            self.kept = {k: v.clone() for k, v in super().state_dict().items()}

        def on_save_checkpoint(self, checkpoint):
            checkpoint["state_dict"] = self.kept

    class Save(L.Callback):
        def on_train_epoch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "x.ckpt")

    with pytest.raises(
        RuntimeError, match=r"would hold the raw weights 'layers.0.weight' .* Keeps or a callback takes"
    ):
        fit(AverageWeights(EMA(decay=0.5)), Save(), net=Keeps(), epochs=1)
    assert not (tmp_path / "x.ckpt").exists()


def test_a_hook_that_fails_leaves_the_raw_weights_in_the_training(tmp_path):
    class Fails(L.Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            raise OSError("full")

        def on_train_batch_end(self, trainer, *_):
            with pytest.raises(OSError, match="full"):
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    plain, _ = fit()
    net, _ = fit(AverageWeights(EMA(decay=0.5)), Fails())
    assert equal(net.path, plain.path)


def test_a_plain_file_needs_no_swap(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_objectives._weights.swap.Swap.applied", None)
    saved, average, *_ = saved_average(tmp_path, Net())
    close(dict(saved["state_dict"]), average)


def test_other_callbacks_states_are_made_of_the_raw_weights(tmp_path):
    class Keeps(L.Callback):
        def setup(self, trainer, pl_module, stage):
            self.module = pl_module

        def state_dict(self):
            return {k: v.detach().clone() for k, v in self.module.named_parameters()}

    net = type("Hooked", (Net,), {"on_save_checkpoint": rebuilt})()
    saved, _, raw, _ = saved_average(tmp_path, net, Keeps())
    assert equal(next(s for key, s in saved["callbacks"].items() if key.endswith("Keeps")), raw)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("permanent", [True, False])
def test_beside_pruning_the_file_and_the_module_hold_the_pruned_average(tmp_path, first, permanent):
    class Prunes(Net):
        def on_train_batch_end(self, *_):
            self.path.append({k.replace("_orig", ""): v.detach().clone() for k, v in self.named_parameters()})

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.mse_loss(self(batch[0]), batch[1])

    net, saver = Prunes(), ModelCheckpoint(tmp_path)
    pruning = ModelPruning(
        "l1_unstructured", parameter_names=["weight"], amount=0.5, apply_pruning=lambda epoch: epoch == 0,
        use_lottery_ticket_hypothesis=False, make_pruning_permanent=permanent,
    )  # fmt: skip
    averages = AverageWeights(EMA(decay=0.5))
    fit(*((pruning, averages) if first else (averages, pruning)), saver, net=net)
    average = {key: ema([weights[key] for weights in net.path], 0.5).float() for key in net.path[0]}
    saved = torch.load(saver.best_model_path, weights_only=True)
    state = saved["state_dict"]
    if not permanent:
        pruned = {k.removesuffix("_orig"): v * state[f"{k[:-5]}_mask"] for k, v in state.items() if "_orig" in k}
        state = state | pruned
        net(torch.zeros(1, 4))  # This applies the masks.
    for key in ("layers.0.weight", "layers.2.weight"):
        layer = net.get_submodule(key.removesuffix(".weight"))
        mask = state[key] != 0
        assert 0 < mask.sum() < mask.numel()
        torch.testing.assert_close(state[key], average[key] * mask, rtol=0, atol=1e-6)
        torch.testing.assert_close(layer.weight.detach(), average[key] * mask, rtol=0, atol=1e-6)
    torch.testing.assert_close(state["layers.0.bias"], average["layers.0.bias"], rtol=0, atol=1e-6)
    if permanent:
        (own,) = [s for key, s in saved["callbacks"].items() if key.startswith("AverageWeights")]
        assert torch.equal(
            own["raw"]["layers.0.weight"], net.path[-1]["layers.0.weight"] * (state["layers.0.weight"] != 0)
        )
        resumed = Net()  # There is nothing left to train.
        trainer(AverageWeights(EMA(decay=0.5))).fit(resumed, loader(), ckpt_path=saver.best_model_path)
        assert equal(resumed, dict(saved["state_dict"]))


# Objects in the file


def attribute(net):
    return types.SimpleNamespace(deep=[net.layers])


def array(net):
    return {"numbers": net.layers[0].weight.detach().numpy()}


def method(net):
    return net.layers.forward


def first_weight(value):
    """The first layer's weight in what a file holds, whatever holds it."""
    value = value.deep[0] if isinstance(value, types.SimpleNamespace) else value
    value = value["numbers"] if isinstance(value, dict) else value
    value = getattr(value, "__self__", value)
    value = value.layers if isinstance(value, Net) else value
    value = value[0].weight if isinstance(value, torch.nn.Sequential) else value
    return torch.as_tensor(value).detach()


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("part", [lambda net: net, lambda net: net.layers, attribute, array, method])
def test_an_object_in_the_file_holds_the_average(tmp_path, part, weights_only):
    class Hooked(Net):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["part"] = part(self)

    Hooked.__qualname__ = "Hooked"
    globals()["Hooked"] = Hooked  # A pickle names the class.
    net = Hooked()
    saved, average, raw, _ = saved_average(tmp_path, net, weights_only=weights_only)
    torch.testing.assert_close(first_weight(saved["part"]), average["layers.0.weight"], rtol=0, atol=1e-6)
    plain, _ = fit(epochs=1)
    assert equal(net.path, plain.path)
    if not weights_only:
        (state,) = [s for key, s in saved["callbacks"].items() if key.startswith("AverageWeights")]
        assert equal(dict(state["raw"]), raw)


class Given(Net):
    """Takes its layers as a hyperparameter, which Lightning pickles into each file."""

    def __init__(self, layers):
        super().__init__(*layers)
        self.save_hyperparameters()


@pytest.mark.filterwarnings("ignore:Attribute 'layers' is an instance of `nn.Module`")
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_module_among_the_hyperparameters_holds_the_average(tmp_path, weights_only):
    net = Given(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)))
    saved, average, raw, _ = saved_average(tmp_path, net, weights_only=weights_only)
    layer = saved["hyper_parameters"]["layers"][0]
    torch.testing.assert_close(layer.weight.detach(), average["layers.0.weight"], rtol=0, atol=1e-6)
    assert net.hparams["layers"][0] is net.layers[0], "the user's own stay the network's"
    if not weights_only:
        (state,) = [s for key, s in saved["callbacks"].items() if key.startswith("AverageWeights")]
        assert equal(dict(state["raw"]), raw)


def test_the_users_own_containers_stay_as_they_are(tmp_path):
    class Bank(Net):
        def __init__(self):
            super().__init__()
            self.bank = {"weights": [self.layers[0].weight]}

        def on_save_checkpoint(self, checkpoint):
            checkpoint["bank"] = self.bank

    net = Bank()
    saved, average, *_ = saved_average(tmp_path, net)
    torch.testing.assert_close(saved["bank"]["weights"][0].detach(), average["layers.0.weight"], rtol=0, atol=1e-6)
    assert net.bank["weights"][0] is net.layers[0].weight
    assert saved["state_dict"]._metadata == net.state_dict()._metadata


class Stubborn:
    def __init__(self, weight):
        self.weight = weight

    def __deepcopy__(self, memo):
        raise TypeError("mine")


def test_an_object_that_cannot_be_copied_is_refused(tmp_path):
    net = type("Hooked", (Net,), {"on_save_checkpoint": lambda self, c: c.update(x=Stubborn(self.layers[0].weight))})()
    with pytest.raises(RuntimeError, match=r"holds a Stubborn with weights of the network, .* cannot be copied: mine"):
        saved_average(tmp_path, net)
    assert not (tmp_path / "x.ckpt").exists()
