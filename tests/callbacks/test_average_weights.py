import copy
import importlib
import pickle
import sys
from contextlib import nullcontext

import lightning as L
import pytest
import torch
from averaging_nets import Net, NormNet, ema, equal, fit, flat, loader, trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_objectives._trainer.patch import Patch
from lightning_objectives._weights.averages import Averages
from lightning_objectives._weights.saving import restore_raw
from lightning_objectives.averaging import BEMA, EMA, SWA
from lightning_objectives.callbacks.average_weights import AverageWeights

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")


class Probe(L.Callback):
    """Calls a function at hooks, after the callbacks before it."""

    def __init__(self, **hooks):
        for name, function in hooks.items():
            setattr(self, name, function)


def after(net):
    """The weights after each optimizer step of a plain run of this net."""
    return [*net.path[1:], flat(net)]


def plain(**kwargs):
    net, _ = fit(**kwargs)
    return net


# The average itself


def test_after_fit_the_module_holds_the_average_and_the_callback_the_raw_weights():
    reference = plain()
    averages = AverageWeights(EMA(decay=0.8))
    net, _ = fit(averages)
    assert equal(net.path, reference.path)
    torch.testing.assert_close(flat(net).double(), ema(after(reference), 0.8), rtol=0, atol=1e-6)
    assert equal(averages.weights("raw"), {k: p.detach() for k, p in reference.named_parameters()})


def test_several_rules_start_and_interval():
    reference = plain(epochs=3)
    averages = AverageWeights([SWA(), EMA(decay=0.5), EMA(decay=0.0)], start_step=3, every_n_steps=2)
    assert averages.names == ("swa", "ema", "ema_2")
    net, _ = fit(averages, epochs=3)
    taken = after(reference)[4::2]  # begun after step 3: steps 5, 7, 9, 11
    assert len(taken) == 4
    torch.testing.assert_close(flat(net).double(), torch.stack(taken).double().mean(0), rtol=0, atol=1e-6)
    for name, decay in (("ema", 0.5), ("ema_2", 0.0)):
        mine = torch.cat([t.flatten() for t in averages.weights(name).values()])
        torch.testing.assert_close(mine.double(), ema(taken, decay), rtol=0, atol=1e-6)


def test_bema_in_a_run_is_the_formula_over_its_path():
    reference = plain()
    net, _ = fit(AverageWeights(BEMA()))
    first, average = reference.path[0].double(), reference.path[0].double()
    for step, weights in enumerate(after(reference), start=1):
        average += (10 + step) ** -0.5 * (weights.double() - average)
    expected = average + 18**-0.2 * (after(reference)[-1].double() - first)
    torch.testing.assert_close(flat(net).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{"rule": EMA(decay=0.0)}, {"rule": EMA(), "start_step": 99}])
def test_zero_strength_is_the_untouched_run_to_the_bit(settings):
    reference = plain(net=NormNet(), val=True)
    averages = AverageWeights(**settings)
    never = pytest.warns(UserWarning, match="never began") if "start_step" in settings else nullcontext()
    with never:
        net, _ = fit(averages, net=NormNet(), val=True)
    assert averages.state_dict()["steps"] == 8  # it did run
    assert equal(net, reference)
    assert equal(net.seen, reference.seen)


def test_an_average_that_never_began_warns():
    with pytest.warns(UserWarning, match=r"never began: 8 optimizer steps were taken, with start_step=8"):
        fit(AverageWeights(EMA(), start_step=8))


def test_half_weights_have_a_shadow_that_moves():
    net = Net(nn.Linear(4, 1, bias=False)).bfloat16()
    averages = AverageWeights(EMA(decay=0.9999), start_step=1)
    bound = lambda *_: averages._averages  # noqa: E731
    drift = Probe(on_train_batch_start=lambda t, m, b, i: m.layers[0].weight.data.fill_(1.1 if i else 1.0))
    net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), 0.0)
    data = loader(n=203, batch_size=1, dtype=torch.bfloat16)
    fit(averages, drift, net=net, data=data, epochs=1)
    assert bound().states["ema"].slots["average"][0].dtype == torch.float32
    live = torch.tensor(1.1).bfloat16().item()
    # begun at 1.0 or 1.1 by the first step; the first update copies
    assert bound().states["ema"].slots["average"][0].flatten()[0].item() == pytest.approx(live, abs=1e-4)
    assert net.layers[0].weight.dtype == torch.bfloat16


def test_the_shadow_of_half_weights_equals_the_float32_reference():
    network = nn.Linear(1, 1, bias=False).bfloat16()
    averages = Averages(network, {"ema": EMA(decay=0.999)})
    values = [1.0, *[1.1015625] * 200]
    for value in values:
        network.weight.data.fill_(value)
        averages.update(1)
    expected = ema([torch.tensor(v) for v in values], 0.999)
    torch.testing.assert_close(
        averages.states["ema"].slots["average"][0].double().squeeze(), expected, rtol=1e-6, atol=0
    )
    assert expected > 1.015  # a bfloat16 shadow would still be at 1


# Which steps count


def scaler():
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**120))


def test_steps_that_a_scaler_skips_do_not_count():
    averages = AverageWeights(EMA())
    with pytest.warns(UserWarning, match="never began: 0 optimizer steps"):
        _, runner = fit(averages, plugins=[scaler()], epochs=1)
    assert runner.global_step == 4
    assert averages._averages.steps == 0


@pytest.mark.parametrize(("accumulate", "expected"), [(1, 4), (2, 2), (3, 2)])
def test_accumulation_with_a_partial_window(accumulate, expected):
    averages = AverageWeights(SWA())
    fit(averages, accumulate_grad_batches=accumulate, epochs=1)
    assert averages._averages.steps == averages._averages.updates == expected


class TwoOptimizers(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        self.manual_backward(loss, retain_graph=True)
        self.untoggle_optimizer(first)
        first.step()
        if batch_idx % 2:
            second.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.layers[i].parameters(), 0.01) for i in (0, 2)]


def test_several_optimizers_in_a_batch_are_one_step():
    averages = AverageWeights(SWA())
    _, runner = fit(averages, net=TwoOptimizers(), epochs=1)
    assert runner.global_step == 6
    assert averages._averages.steps == averages._averages.updates == 4
    assert len(averages._averages.names) == 4


def test_a_closure_counts_once():
    net = Net()
    net.configure_optimizers = lambda: torch.optim.LBFGS(net.parameters(), max_iter=3)
    averages = AverageWeights(SWA())
    fit(averages, net=net, epochs=1)
    assert averages._averages.steps == 4


def test_a_fused_optimizer_that_skips_by_itself_does_not_count():
    net = nn.Linear(1, 1)
    optimizer, averages = torch.optim.SGD(net.parameters(), 0.1, fused=True), Averages(net, {"swa": SWA()})
    averages.watch([optimizer])
    for overflow in (0.0, 1.0, 0.0):  # what a gradient scaler sets for the time of the step
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(overflow), torch.tensor(1.0)
        optimizer.step()
        averages.update()
    assert averages.steps == 2


# Which tensors


class Odd(Net):
    """Tied and frozen weights, buffers of every kind, a parametrisation, a complex weight."""

    def __init__(self):
        torch.manual_seed(7)
        super().__init__(
            nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 1)), lr=0.01
        )
        self.layers[2].weight = self.layers[0].weight
        self.layers[0].bias.requires_grad_(False)
        self.phase = nn.Parameter(torch.tensor([0.5 + 0.5j]))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("flag", torch.ones(2, dtype=torch.bool))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.count += 50
            self.level = self.level + 1.0  # assigned anew, not changed in place
        return self.layers(x) * self.phase.abs()


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_tied_frozen_complex_and_integer_tensors(decay, buffers):
    averages = AverageWeights(EMA(decay=decay), buffers=buffers)
    net, _ = fit(averages, net=Odd(), epochs=1)
    names = averages._averages.names
    assert "layers.0.weight" in names and "layers.2.weight" not in names  # noqa: PT018
    assert "layers.0.bias" not in names
    assert net.layers[0].weight is net.layers[2].weight
    assert net.count == 200
    assert net.flag.all()
    assert net.phase.dtype == torch.complex64
    assert "phase" in names
    expected = ema([torch.tensor(float(v)) for v in (1, 2, 3, 4)], decay)
    assert net.level.item() == pytest.approx(expected.item() if buffers == "average" else 4.0, rel=1e-6)


class Unfreezes(Net):
    def on_train_epoch_start(self):
        self.layers[0].requires_grad_(self.current_epoch > 0)
        if self.current_epoch == 1:
            self.optimizers().add_param_group({"params": list(self.layers[0].parameters())})


def unfreezing():
    net = Unfreezes()
    net.layers[0].requires_grad_(False)
    return net


@pytest.mark.parametrize("rule", [EMA(decay=0.8), SWA(), BEMA()])
def test_a_parameter_that_unfreezes_joins_as_if_it_had_been_averaged_all_along(rule):
    reference = plain(net=unfreezing())
    averages = AverageWeights(rule)
    net, _ = fit(averages, net=unfreezing())
    assert len(averages._averages.names) == 4
    path = [reference.path[0], *after(reference)]
    state = rule.init([path[0]])
    for step, weights in enumerate(path[1:], start=1):
        rule.update(state, [weights], step=step)
    torch.testing.assert_close(flat(net), rule.read(state, [path[-1]], step=8)[0], rtol=0, atol=1e-6)


class Backbone(Net):
    def __init__(self):
        super().__init__()
        self.backbone = self.layers[0]


def test_backbone_finetuning():
    averages = AverageWeights(SWA())
    # listed before the callback that unfreezes
    fit(averages, BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False), net=Backbone())
    assert len(averages._averages.names) == 4
    slots = averages._averages.states["swa"].slots["average"]
    assert [t.shape for t in slots] == [t.shape for t in averages._averages._shadows.tensors.live]


def test_a_module_that_is_moved_or_cast_is_followed():
    net = nn.Linear(2, 1)
    averages = Averages(net, {"swa": SWA()})
    values = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        net.to(dtype)
        with torch.no_grad():
            net.weight += 1
        averages.update(1)
        values.append(net.weight.detach().double().clone())
        assert averages.weights("swa")["weight"].dtype == dtype
    torch.testing.assert_close(averages.weights("swa")["weight"], torch.stack(values).mean(0), rtol=1e-6, atol=0)


def test_a_device_of_its_own_is_the_same_average():
    expected, _ = fit(AverageWeights(BEMA()), val=True)
    net, _ = fit(AverageWeights(BEMA(), device="cpu"), val=True)
    assert equal(net, expected)


def test_a_lazy_module():
    net = Net(nn.LazyLinear(3), nn.Linear(3, 1))
    net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), 0.1)
    net.path = None
    net.training_step = lambda batch, batch_idx: net(batch[0]).pow(2).mean()
    averages = AverageWeights(EMA(decay=0.5))
    fit(averages, net=net, epochs=1)
    assert "layers.0.weight" in averages._averages.names
    assert net.layers[0].weight.isfinite().all()


# Swapping


HOOKS = [
    "on_sanity_check_start on_sanity_check_end on_validation_start on_validation_epoch_start on_validation_batch_start",
    "on_validation_batch_end on_validation_epoch_end on_validation_end on_train_epoch_end on_train_batch_start",
    "on_test_start on_test_end on_train_end on_fit_end",
]
AVERAGED = {f"on_validation_{w}" for w in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end")}


def recorder(net, seen):
    def record(name):
        return lambda trainer, module, *_: seen.append((name, trainer.sanity_checking, flat(module)))

    return Probe(**{name: record(name) for name in " ".join(HOOKS).split()})


def test_which_weights_each_hook_sees():
    reference = plain(epochs=1, val=True)
    raw, average = flat(reference), ema(after(reference), 0.8).float()
    seen = []
    net = Net()
    _, runner = fit(AverageWeights(EMA(decay=0.8)), recorder(net, seen), net=net, epochs=1, val=True)
    runner.test(net, loader(seed=1), verbose=False)
    for name, sanity, weights in seen:
        if sanity or name == "on_train_batch_start":
            assert any(torch.equal(weights, before) for before in reference.path), name
        elif name in AVERAGED | {"on_train_end", "on_fit_end", "on_test_start", "on_test_end"}:
            torch.testing.assert_close(weights, average, rtol=0, atol=1e-6)
        else:
            assert torch.equal(weights, raw), name
    assert {name for name, *_ in seen} == set(" ".join(HOOKS).split())


@pytest.mark.parametrize(
    ("settings", "steps"),  # after which steps a batch of validation comes
    [
        ({"val_check_interval": 2}, [2] * 4 + [4] * 4 + [6] * 4 + [8] * 4),
        ({"check_val_every_n_epoch": 2}, [8] * 4),
        ({"limit_val_batches": 0}, []),
        ({"fast_dev_run": True}, [1]),
        ({"fast_dev_run": 3}, [3] * 3),
    ],
    ids=str,
)
def test_every_validation_sees_the_average_and_training_the_raw_weights(settings, steps):
    settings = {"num_sanity_val_steps": 0, **settings}
    reference = plain(val=True, **settings)
    net, _ = fit(AverageWeights(EMA(decay=0.9)), val=True, **settings)
    assert equal(net.path, reference.path)
    assert len(net.seen) == len(reference.seen) == len(steps)
    for weights, step in zip(net.seen, steps):
        average = ema(after(reference)[:step], 0.9)
        torch.testing.assert_close(weights.double(), average, rtol=0, atol=1e-6)
    assert [torch.equal(a, b) for a, b in zip(net.seen, reference.seen)] == [step == 1 for step in steps]


def test_the_sanity_check_changes_nothing():
    a, _ = fit(AverageWeights([EMA(), BEMA()]), val=True, num_sanity_val_steps=0)
    b, _ = fit(AverageWeights([EMA(), BEMA()]), val=True, num_sanity_val_steps=2)
    assert equal(a, b)


def test_several_validation_loaders():
    net = Net()
    net.validation_step = lambda batch, batch_idx, dataloader_idx=0: net.seen.append(flat(net))
    runner = trainer(AverageWeights(EMA(decay=0.9)), epochs=1, num_sanity_val_steps=0)
    runner.fit(net, loader(), [loader(seed=1), loader(seed=2)])
    assert len(net.seen) == 8
    assert all(torch.equal(weights, flat(net)) for weights in net.seen)


class BoomError(Exception):
    pass


def boom(*_):
    raise BoomError


FAILING = ["on_validation_start", "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end"]
FAILING += ["on_train_batch_start", "on_train_epoch_end", "on_before_optimizer_step"]


@pytest.mark.parametrize("hook", FAILING)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode")  # as the first, stopped validation left them
def test_an_exception_leaves_the_raw_weights_and_a_clean_module(hook, first):
    reference = plain(epochs=1, val=True)
    net, averages = Net(), AverageWeights(EMA(decay=0.9))
    fails = Probe(**{hook: lambda t, *_: None if t.sanity_checking else boom()})
    with pytest.raises(BoomError):
        fit(*((averages, fails) if first else (fails, averages)), net=net, epochs=1, val=True)
    assert any(torch.equal(flat(net), weights) for weights in (*reference.path, flat(reference)))
    assert "on_save_checkpoint" not in vars(net)
    assert not net.trainer.optimizers[0]._optimizer_step_post_hooks
    net.load_state_dict(Net().state_dict())
    net.path.clear()
    again, _ = fit(averages, net=net, epochs=1, val=True)
    fresh, _ = fit(AverageWeights(EMA(decay=0.9)), epochs=1, val=True)
    assert equal(again, fresh)


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_train_batch_start", "on_train_epoch_end"])
def test_a_checkpoint_saved_on_an_exception_holds_both(tmp_path, hook):
    count = []
    fails = Probe(**{hook: lambda t, *_: t.sanity_checking or (count.append(1), len(count) > 2 and boom())})
    averages, saver = AverageWeights(EMA(decay=0.9)), OnExceptionCheckpoint(tmp_path, filename="x")
    net = Net()
    with pytest.raises(BoomError):
        fit(fails, saver, averages, net=net, val=True, epochs=5)
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    (state,) = [s for key, s in saved["callbacks"].items() if key.startswith("AverageWeights")]
    assert equal(dict(state["raw"]), dict(net.state_dict()))
    assert equal(dict(saved["state_dict"]), dict(state["averages"]["ema"]["slots"]["average"]))
    assert not equal(dict(saved["state_dict"]), dict(state["raw"]))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.filterwarnings("ignore:predict returned None")
def test_outside_fit_nothing_is_swapped_nor_allocated(stage, tmp_path):
    averages = AverageWeights(EMA(decay=0.9))
    net, runner = fit(averages, val=True)
    runner.save_checkpoint(tmp_path / "x.ckpt")
    average = flat(net)
    for evaluator, module, path in (
        (runner, net, None),
        (runner, net, tmp_path / "x.ckpt"),
        (trainer(AverageWeights(EMA(decay=0.9))), Net(), tmp_path / "x.ckpt"),
    ):
        module.seen.clear()
        getattr(evaluator, stage)(module, loader(), ckpt_path=path)
        assert all(torch.equal(weights, average) for weights in module.seen)
        assert torch.equal(flat(module), average)
    assert evaluator.callbacks[0]._averages is None
    other = Net()
    runner = trainer(averages)
    getattr(runner, stage)(other, loader())
    assert torch.equal(flat(other), other.seen[0])
    assert torch.equal(flat(other), flat(Net()))


def test_evaluating_before_fit_does_not_poison_it():
    averages, net = AverageWeights([EMA(), BEMA()]), Net()
    runner = trainer(averages)
    runner.validate(net, loader(), verbose=False)
    assert averages._averages is None
    runner.fit(net, loader(), loader())
    fresh, _ = fit(AverageWeights([EMA(), BEMA()]), data=loader())
    assert equal(net, fresh)


def test_applied_in_inference_mode_does_not_poison_training():
    averages = AverageWeights(EMA(decay=0.9))

    def look(trainer, module, *_):
        with torch.inference_mode(), averages.applied(module):
            pass

    net, _ = fit(averages, Probe(on_train_batch_end=look), val=True)
    fresh, _ = fit(AverageWeights(EMA(decay=0.9)), val=True)
    assert equal(net, fresh)


def test_applied_weights_and_averaged_state_dict():
    averages, other = AverageWeights([EMA(decay=0.9), BEMA()]), AverageWeights(BEMA(), primary=False)
    checked = []

    def look(trainer, module, *_):
        if trainer.sanity_checking:
            return
        before = flat(module)
        for callback in (averages, other):
            for name in callback.names:
                with callback.applied(module, name):
                    inside = {k: p.detach().clone() for k, p in module.named_parameters()}
                    assert equal(callback.weights(name), inside)
                    assert equal(callback.averaged_state_dict(name), inside)
                    with averages.applied(module):
                        assert equal(averages.weights("ema"), {k: p.detach() for k, p in module.named_parameters()})
                    assert equal(inside, {k: p.detach() for k, p in module.named_parameters()})
                assert torch.equal(flat(module), before)
        # BEMA needs the raw weights, which are away during validation: both ways must agree
        assert equal(averages.weights("bema"), other.weights("bema"))
        assert equal(averages.weights("raw"), other.weights("raw"))
        checked.append(trainer.state.stage)

    net, _ = fit(averages, other, Probe(on_train_batch_end=look, on_validation_start=look, on_fit_end=look), val=True)
    assert len(checked) == 8 + 2 + 1
    reference = plain(val=True)
    assert equal(net.path, reference.path)
    with pytest.raises(ValueError, match="is not the module that was trained"), averages.applied(Net()):
        pass
    with pytest.raises(ValueError, match=r"name='swa' must be one of \['ema', 'bema', 'raw'\]"):
        averages.weights("swa")
    with pytest.raises(RuntimeError, match="No training has begun with this AverageWeights object"):
        AverageWeights(EMA()).weights("ema")


# One primary


def test_two_primaries_are_refused_and_one_is_named():
    with pytest.raises(ValueError, match=r"2 AverageWeights callbacks are primary.*Pass primary=False"):
        fit(AverageWeights(EMA()), AverageWeights(BEMA()))
    reference = plain()
    for order in (1, -1):
        pair = [AverageWeights(EMA(decay=0.9), primary=False), AverageWeights(EMA(decay=0.5))][::order]
        net, _ = fit(*pair)
        torch.testing.assert_close(flat(net).double(), ema(after(reference), 0.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": []}, r"rule=\[\] must be an averaging rule"),
        ({"rule": [EMA]}, "must be an averaging rule"),
        ({"start_step": -1}, "start_step=-1 must be >= 0"),
        ({"every_n_steps": 0}, "every_n_steps=0 must be >= 1"),
        ({"buffers": "freeze"}, "buffers='freeze' must be"),
        ({"buffers": "recalibrate", "primary": False}, "is for the average that is validated"),
    ],
)
def test_settings_outside_their_range(settings, message):
    with pytest.raises(ValueError, match=message):
        AverageWeights(**{"rule": EMA(), **settings})


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_strategies_with_flat_shards_are_refused(name):
    strategy = type(name, (), {})()
    fake = type("Trainer", (), {"strategy": strategy, "callbacks": []})()
    with pytest.raises(ValueError, match=f"cannot work under {name}.*ModelParallelStrategy"):
        AverageWeights(EMA()).setup(fake, Net(), "fit")


# BatchNorm


def test_recalibrate_is_torchs_update_bn_with_the_average():
    averages, net = AverageWeights(EMA(decay=0.9), buffers="recalibrate"), NormNet()
    live = {}
    look = Probe(
        on_train_epoch_end=lambda t, m: live.update(copy.deepcopy(m.layers[1].state_dict())),
        on_validation_end=lambda t, m: t.sanity_checking or live.update(copy.deepcopy(m.layers[1].state_dict())),
    )
    reference = plain(net=NormNet(), val=True)
    fit(averages, look, net=net, val=True)
    assert equal(live, dict(reference.layers[1].state_dict()))  # training's own statistics are untouched
    assert equal(net.path, reference.path)
    expected = NormNet()
    expected.load_state_dict(net.state_dict())
    update_bn(loader(), expected)
    for key in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(net.layers[1], key), getattr(expected.layers[1], key))
    assert not torch.equal(net.layers[1].running_mean, reference.layers[1].running_mean)
    assert net.layers[1].momentum == 0.1


def test_recalibrate_runs_once_for_the_same_weights():
    net, modes = NormNet(), []
    forward = net.forward
    net.forward = lambda x: (modes.append((net.training, net.layers[1].training)), forward(x))[1]
    fit(AverageWeights(EMA(decay=0.9), buffers="recalibrate"), net=net, val=True)
    # four batches after each of two epochs; the second time again serves the end of the training
    assert modes.count((False, True)) == 8


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode")  # which is what is tested
def test_recalibrate_leaves_random_states_and_modes(tmp_path):
    def make():
        torch.manual_seed(7)
        net = Net(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 1))
        net.layers[3].eval()
        net.on_train_epoch_start = lambda: net.layers[3].eval()
        return net

    torch.manual_seed(3)
    reference = plain(net=make(), val=True, data=loader(shuffle=True))
    torch.manual_seed(3)
    net, _ = fit(AverageWeights(EMA(decay=0.9), buffers="recalibrate"), net=make(), val=True, data=loader(shuffle=True))
    assert equal(net.path, reference.path)
    assert equal(net.layers[3].running_mean, torch.zeros(3))  # frozen statistics stay frozen
    assert [m.training for m in net.modules()] == [m.training for m in reference.modules()]


@pytest.mark.parametrize("trained", [True, False])
def test_the_statistics_that_are_re_estimated_are_those_that_were_trained_last(trained):
    x, reached = torch.randn(16, 2), []

    def passes(norms):
        reached.append(list(norms))
        net(x)

    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[1].train(not trained)
    averages = Averages(net, {"ema": EMA(decay=0.5)}, buffers="recalibrate", passes=passes)
    net[1].train(trained)
    averages.update(1)
    net.eval()
    averages.swap_in("ema")
    assert reached == [[net[1]] if trained else []]
    torch.testing.assert_close(net[1].running_mean, net[0](x).detach().mean(0) if trained else torch.zeros(2))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_recalibrated_statistics_are_in_the_checkpoint_and_resume_is_exact(tmp_path):
    def run(epochs, ckpt_path=None, name="a"):
        averages = AverageWeights([EMA(decay=0.9), BEMA()], buffers="recalibrate")
        saver = ModelCheckpoint(tmp_path / name, save_top_k=-1, filename="{epoch}")
        net, runner = fit(averages, saver, net=NormNet(), val=True, epochs=epochs, ckpt_path=ckpt_path)
        return net, averages, runner

    whole, averages, _ = run(3)
    resumed, others, _ = run(3, ckpt_path=tmp_path / "a" / "epoch=1.ckpt", name="b")
    assert equal(whole, resumed)
    assert equal(averages.state_dict(), others.state_dict())
    saved = torch.load(tmp_path / "a" / "epoch=2.ckpt", weights_only=True)
    assert equal(dict(saved["state_dict"]), dict(whole.state_dict()))


def test_recalibrate_without_passes_is_refused():
    averages = Averages(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), {"ema": EMA()}, buffers="recalibrate")
    averages.update(1)
    with pytest.raises(RuntimeError, match="nothing runs the network over the training data"):
        averages.swap_in("ema")


def test_recalibrate_refuses_passes_that_reach_no_norm():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averages = Averages(net, {"ema": EMA()}, buffers="recalibrate", passes=lambda norms: None)
    averages.update(1)
    with pytest.raises(RuntimeError, match="no training batch passed through a BatchNorm layer"):
        averages.swap_in("ema")


def test_recalibrate_refuses_batches_in_which_it_finds_no_inputs():
    class Named(NormNet):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["x"], batch["y"]), batch_idx)

    named = torch.utils.data.DataLoader([{"x": x, "y": y} for x, y in loader().dataset], 4)
    with pytest.raises(ValueError, match="its first element, which must be a tensor, but got dict"):
        fit(AverageWeights(EMA(), buffers="recalibrate"), net=Named(), data=named)


def test_recalibrate_refuses_what_it_cannot_run():
    with pytest.raises(ValueError, match="runs through the training dataloader again, but it is list"):
        fit(AverageWeights(EMA(), buffers="recalibrate"), net=NormNet(), data=[loader(), loader()])


def test_a_variance_is_never_extrapolated():
    reference = NormNet()
    variances = []
    look = Probe(on_train_batch_end=lambda t, m, *_: variances.append(m.layers[1].running_var.clone()))
    fit(look, net=reference)
    net, _ = fit(AverageWeights(BEMA(), buffers="average"), net=NormNet())
    average = torch.ones(3, dtype=torch.float64)
    for step, variance in enumerate(variances, start=1):
        average += (10 + step) ** -0.5 * (variance.double() - average)
    torch.testing.assert_close(net.layers[1].running_var.double(), average, rtol=0, atol=1e-6)


# Checkpoints


def both():
    return [
        AverageWeights([EMA(decay=0.9), BEMA()], buffers="average"),
        AverageWeights(EMA(decay=0.99), start_step=2, primary=False),
    ]


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("net", [NormNet, Odd, unfreezing])
def test_resuming_is_the_uninterrupted_run(tmp_path, at, net):
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    whole, first = net(), both()
    fit(*first, saver, net=whole, val=True, epochs=4)
    resumed, second = net(), both()
    if net is unfreezing and at > 1:
        resumed.layers[0].requires_grad_(True)  # what the user's code does on resuming
        resumed.on_train_epoch_start = lambda: None
        resumed.configure_optimizers = lambda: torch.optim.SGD(
            [{"params": resumed.layers[2].parameters()}, {"params": resumed.layers[0].parameters()}], 0.1, momentum=0.9
        )
    fit(*second, net=resumed, val=True, epochs=4, ckpt_path=tmp_path / f"epoch={at - 1}.ckpt")
    assert equal(whole.path[4 * at :], resumed.path)
    assert equal(whole, resumed)
    for a, b in zip(first, second):
        assert equal(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_file_opens_strictly_with_the_plain_module_and_holds_the_average(tmp_path, weights_only):
    saver = ModelCheckpoint(tmp_path, monitor="val", filename="x", save_weights_only=weights_only, save_top_k=1)
    _net, _runner = fit(AverageWeights([BEMA(), EMA()]), saver, val=True)
    saved = torch.load(saver.best_model_path, weights_only=True)
    assert list(saved["state_dict"]) == list(Net().state_dict())
    assert ("callbacks" in saved) != weights_only
    best = Net.load_from_checkpoint(saver.best_model_path)
    (metrics,) = trainer().validate(best, loader(seed=1), verbose=False)
    assert metrics["val"] == pytest.approx(saver.best_model_score.item(), abs=0)


def test_before_the_average_begins_a_file_holds_the_raw_weights(tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    net, _ = fit(AverageWeights(EMA(decay=0.9), start_step=2), saver, epochs=1)
    path = [*net.path[1:]]
    saved = [torch.load(tmp_path / f"step={k}.ckpt", weights_only=True)["state_dict"] for k in (1, 2, 3)]
    joined = [torch.cat([t.flatten() for t in state.values()]) for state in saved]
    assert all(torch.equal(a, b) for a, b in zip(joined, path))  # the first update, at step 3, copies


@pytest.mark.parametrize(
    "hook", ["on_train_batch_end", "on_validation_batch_end", "on_validation_end", "on_train_end", "on_fit_end"]
)
@pytest.mark.parametrize("first", [True, False])
def test_saving_inside_a_hook_holds_both(tmp_path, hook, first):
    reference = plain(epochs=1, val=True)
    save = Probe(**{hook: lambda t, *_: t.sanity_checking or t.save_checkpoint(tmp_path / "x.ckpt")})
    averages = AverageWeights(EMA(decay=0.8))
    fit(*((save, averages) if first else (averages, save)), epochs=1, val=True)
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    (state,) = [s for key, s in saved["callbacks"].items() if key.startswith("AverageWeights")]
    join = lambda tensors: torch.cat([t.flatten() for t in tensors.values()])  # noqa: E731
    assert state["steps"] == 4
    torch.testing.assert_close(join(saved["state_dict"]).double(), ema(after(reference), 0.8), rtol=0, atol=1e-6)
    assert torch.equal(join(state["raw"]), flat(reference))


def test_a_weights_only_save_before_this_callbacks_turn_has_the_newest_step(tmp_path):
    reference = plain(epochs=1)
    save = Probe(on_train_batch_end=lambda t, *_: t.save_checkpoint(tmp_path / "x.ckpt", weights_only=True))
    fit(save, AverageWeights(EMA(decay=0.8)), epochs=1)
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    join = torch.cat([t.flatten() for t in saved.values()])
    torch.testing.assert_close(join.double(), ema(after(reference), 0.8), rtol=0, atol=1e-6)


def test_after_fit_and_after_evaluating_a_save_still_holds_both(tmp_path):
    averages = AverageWeights(EMA(decay=0.8))
    net, runner = fit(averages)
    runner.test(net, loader(), verbose=False)
    runner.save_checkpoint(tmp_path / "x.ckpt")
    whole, _ = fit(AverageWeights(EMA(decay=0.8)), epochs=4)
    resumed, _ = fit(AverageWeights(EMA(decay=0.8)), epochs=4, ckpt_path=tmp_path / "x.ckpt")
    assert equal(whole, resumed)


def test_resuming_what_is_finished_leaves_the_average(tmp_path):
    net, runner = fit(AverageWeights(EMA(decay=0.8)))
    runner.save_checkpoint(tmp_path / "x.ckpt")
    again, _ = fit(AverageWeights(EMA(decay=0.8)), ckpt_path=tmp_path / "x.ckpt")
    assert equal(net, again)


def test_newly_added_it_starts_from_the_loaded_weights(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="x")
    fit(saver, epochs=1)
    reference = plain(epochs=2)
    averages = AverageWeights(EMA(decay=0.8), start_step=6)
    net, _ = fit(averages, epochs=2, ckpt_path=tmp_path / "x.ckpt")
    assert equal(net.path, reference.path[4:])
    assert (averages._averages.start, averages._averages.steps) == (6, 8)


def test_with_other_settings_the_raw_weights_go_on(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="x")
    fit(AverageWeights(EMA(decay=0.5)), saver, epochs=1)
    with pytest.warns(UserWarning, match="averages of other settings"):
        net, _ = fit(AverageWeights(BEMA()), epochs=2, ckpt_path=tmp_path / "x.ckpt")
    assert equal(net.path, plain(epochs=2).path[4:])


@pytest.mark.parametrize("interval", [1, 2])
def test_a_checkpoint_of_lightnings_own_averaging(tmp_path, interval):
    theirs = EMAWeightAveraging(decay=0.8, update_every_n_steps=interval)
    fit(theirs, ModelCheckpoint(tmp_path, filename="x"), epochs=1)
    averages = AverageWeights(EMA(decay=0.8), every_n_steps=interval)
    net, _ = fit(averages, epochs=2, ckpt_path=tmp_path / "x.ckpt")
    assert equal(net.path, plain(epochs=2).path[4:])
    if interval == 1:
        whole, _ = fit(EMAWeightAveraging(decay=0.8), epochs=2)
        torch.testing.assert_close(flat(net), flat(whole), rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match=r"\['bema'\] need more"):
        fit(AverageWeights([BEMA(), SWA()]), epochs=2, ckpt_path=tmp_path / "x.ckpt")


def test_lightnings_own_average_goes_on_before_the_start_step(tmp_path):
    """It has begun already, so that there is nothing to wait for."""
    fit(EMAWeightAveraging(decay=0.8), ModelCheckpoint(tmp_path, filename="x"), epochs=1)
    nets = [
        fit(AverageWeights(EMA(decay=0.8), start_step=step), epochs=2, ckpt_path=tmp_path / "x.ckpt")[0]
        for step in (0, 100)
    ]
    assert equal(*nets)


@pytest.mark.parametrize("fault", ["extra", "missing", "shape"])
def test_a_state_of_another_network_is_refused(tmp_path, fault):
    _, _runner = fit(averages := AverageWeights(EMA()))
    state = copy.deepcopy(averages.state_dict())
    slot = state["averages"]["ema"]["slots"]["average"]
    if fault == "extra":
        slot["other"] = torch.zeros(1)
    elif fault == "missing":
        del slot["layers.0.weight"]
    else:
        slot["layers.0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"does not match the network|is \(1,\) in the checkpoint, but \(3, 4\)"):
        averages._averages.load_state_dict(state)


def other_rules(state):
    state["averages"]["other"] = state["averages"].pop("ema")


def more_slots(state):
    slots = state["averages"]["ema"]["slots"]
    slots["more"] = slots["average"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_rules, r"holds the averages \['other'\], but the rules are \['ema'\]"),
        (more_slots, r"has the slots \['average', 'more'\], not \['average'\]"),
    ],
)
def test_a_state_of_other_rules_is_refused(change, message):
    fit(averages := AverageWeights(EMA()))
    state = copy.deepcopy(averages.state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        averages._averages.load_state_dict(state)


def test_a_state_with_averages_of_weights_that_are_not_raw_in_it_is_refused():
    net, _ = fit(averages := AverageWeights(EMA()))
    state = copy.deepcopy(averages.state_dict())
    del state["raw"]["layers.0.weight"]
    with pytest.raises(ValueError, match=r"there are averages of \['layers.0.weight'\], but no raw weights"):
        restore_raw(net, state)


def test_raw_weights_that_the_network_does_not_have_are_refused():
    net, _ = fit(averages := AverageWeights(EMA()))
    state = copy.deepcopy(averages.state_dict())
    state["raw"]["other"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"raw weights that the network does not have: \['other'\]"):
        restore_raw(net, state)


class Renamed(Net):
    """Its state dict drops one key and renames the others."""

    strict_loading = False

    def state_dict(self):
        return {f"net.{k}": v for k, v in super().state_dict().items() if k != "layers.0.bias"}

    def load_state_dict(self, state, strict=True):
        return super().load_state_dict({k.removeprefix("net."): v for k, v in state.items()}, strict=False)


def test_a_state_dict_of_the_modules_own_making(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="x")
    net, _ = fit(AverageWeights(EMA(decay=0.5)), saver, net=Renamed())
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert list(saved) == [f"net.layers.{k}" for k in ("0.weight", "2.weight", "2.bias")]
    assert equal(saved, net.state_dict())
    resumed, _ = fit(AverageWeights(EMA(decay=0.5)), net=Renamed(), epochs=4, ckpt_path=tmp_path / "x.ckpt")
    whole, _ = fit(AverageWeights(EMA(decay=0.5)), net=Renamed(), epochs=4)
    assert equal(whole, resumed)


def compiled():
    net = Net()
    net.layers = torch.compile(net.layers, backend="eager")
    return net


def test_compiled_submodules_go_on_from_eager_ones_and_back():
    for first, second in ((Net, compiled), (compiled, Net)):
        averages = AverageWeights(BEMA())
        fit(averages, net=first(), epochs=1)
        state = averages.state_dict()
        assert list(state["raw"]) == list(Net().state_dict())
        other = Averages(second(), {"bema": BEMA()})
        other.load_state_dict(state)
        assert equal(state, other.state_dict())
    net, _ = fit(AverageWeights(EMA()), net=compiled())
    assert list(net.state_dict()) == list(compiled().state_dict())


def test_the_file_opens_where_the_package_cannot_be_imported(tmp_path, monkeypatch):
    saver = ModelCheckpoint(tmp_path, filename="x")
    net, _ = fit(AverageWeights([EMA(), BEMA()], buffers="average"), saver, net=NormNet())
    for name in [name for name in sys.modules if name.partition(".")[0] == "lightning_objectives"]:
        monkeypatch.setitem(sys.modules, name, None)  # any import of it, by whatever name, fails
    with pytest.raises(ImportError):
        importlib.import_module("lightning_objectives.averaging")
    loaded = NormNet.load_from_checkpoint(tmp_path / "x.ckpt", strict=True, weights_only=True)
    assert torch.equal(flat(loaded), flat(net))


# The rest of the Trainer


def test_a_callback_used_again_equals_fresh_ones():
    averages = AverageWeights([EMA(decay=0.9), BEMA()])
    fit(averages, val=True, epochs=1)
    for make in (Net, NormNet):
        again, _ = fit(averages, net=make(), val=True)
        fresh, _ = fit(AverageWeights([EMA(decay=0.9), BEMA()]), net=make(), val=True)
        assert equal(again, fresh)


def test_fit_twice_with_one_trainer_equals_fresh_callbacks():
    nets = []
    for once in (True, False):
        averages, net = AverageWeights(EMA(decay=0.9)), Net()
        runner = trainer(averages)
        runner.fit(net, loader(), loader())
        runner.fit_loop.max_epochs = 4
        if not once:
            runner.callbacks = [AverageWeights(EMA(decay=0.9)) if c is averages else c for c in runner.callbacks]
        runner.fit(net, loader(), loader())
        nets.append(net)
    assert equal(*nets)


def test_the_callback_pickles_and_copies_at_any_time():
    averages = AverageWeights([EMA(decay=0.9), BEMA()])
    copies = []
    look = Probe(on_train_batch_end=lambda t, m, *_: copies.append((pickle.dumps(averages), copy.deepcopy(m))))
    fit(averages, look, epochs=1)
    for saved, module in copies:
        other = pickle.loads(saved)
        assert (other.names, other.state_key, other._averages) == (averages.names, averages.state_key, None)
        assert not isinstance(module.on_save_checkpoint, Patch)
    fresh, _ = fit(AverageWeights([EMA(decay=0.9), BEMA()]))
    again, _ = fit(pickle.loads(copies[-1][0]))
    assert equal(fresh, again)


class FindsInside(LearningRateFinder):
    def on_fit_start(self, *_):
        return

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, module)
            module.lr = 0.1
            trainer.optimizers[0].param_groups[0]["lr"] = 0.1
            module.path[:] = module.path[:4]


@pytest.mark.parametrize("finder", [LearningRateFinder, FindsInside])
def test_the_learning_rate_finder_leaves_no_trace(tmp_path, finder):
    runs = []
    for callbacks in ([], [AverageWeights(EMA(decay=0.9))]):
        net = Net()
        search = finder(num_training_steps=5, update_attr=False, early_stop_threshold=None)
        fit(search, *callbacks, net=net, default_root_dir=tmp_path)
        runs.append(net)
    without, with_average = runs
    assert equal(without.path, with_average.path)
    steps = after(without)[-8:]
    torch.testing.assert_close(flat(with_average).double(), ema(steps, 0.9), rtol=0, atol=1e-6)


def test_the_order_of_the_callbacks_does_not_matter(tmp_path):
    results = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        made = [AverageWeights(EMA(decay=0.8)), AverageWeights(BEMA(), primary=False)]
        saver = ModelCheckpoint(tmp_path / str(order), monitor="val", filename="x")
        made.append(saver)
        net, runner = fit(*[made[i] for i in order], val=True)
        assert isinstance(runner.callbacks[-1], ModelCheckpoint)
        results.append((dict(net.state_dict()), torch.load(saver.best_model_path, weights_only=True)["state_dict"]))
    assert all(equal(result, results[0]) for result in results[1:])


def test_a_module_and_a_trainer_of_the_other_name():
    pl = pytest.importorskip("pytorch_lightning")
    base = {"forward": Net.forward, "training_step": lambda s, b, i: s(b[0]).pow(2).mean()}

    class Other(pl.LightningModule):
        forward, training_step = base["forward"], base["training_step"]

        def __init__(self):
            super().__init__()
            torch.manual_seed(7)
            self.layers = nn.Linear(4, 1)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    averages, net = AverageWeights(SWA()), Other()
    runner = pl.Trainer(
        max_epochs=1, callbacks=[averages], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    runner.fit(net, loader())
    assert averages._averages.updates == 4
    assert equal(averages.weights("swa"), {k: p.detach() for k, p in net.named_parameters()})


def test_children_that_keep_out_of_the_state_dict_are_not_averaged():
    class Lent(nn.ModuleDict):
        def state_dict(self, *args, destination=None, **kwargs):
            return {} if destination is None else destination

    net = Net()
    net.lent = Lent({"a": nn.Linear(4, 1)})
    averages = AverageWeights(EMA())
    fit(averages, net=net)
    assert averages._averages.names == list(Net().state_dict())


@pytest.mark.parametrize("theirs", [EMAWeightAveraging, lambda: StochasticWeightAveraging(swa_lrs=0.1)])
@pytest.mark.parametrize("front", [True, False])
def test_lightnings_own_average_beside_a_primary_one_is_refused(theirs, front):
    both = [AverageWeights(EMA()), theirs()]
    with pytest.raises(ValueError, match=r"\('ema',\) stands beside Lightning's (Stochastic)?WeightAveraging, but"):
        fit(*(reversed(both) if front else both))


def test_an_average_that_is_not_primary_stands_beside_lightnings():
    alone, beside = (AverageWeights(EMA(decay=0.5), primary=False) for _ in range(2))
    fit(alone)
    fit(beside, EMAWeightAveraging())
    assert equal(alone.weights("ema"), beside.weights("ema"))
