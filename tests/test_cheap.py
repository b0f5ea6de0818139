"""The tests' short cuts change nothing of a training."""

import functools
import random

import cheap
import numpy as np
import pytest
import torch
from helpers import Net, equal, fit, loader
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torchmetrics import MeanMetric, MinMetric

from lightning_objectives.callbacks import LogMetrics


def trained():
    net, runner = fit(LogMetrics(), val=loader(seed=1))
    streams = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    return net, runner.callback_metrics, streams


def test_a_training_is_the_same_without_them(monkeypatch):
    net, metrics, streams = trained()
    assert metrics
    replaced = "__code__ __eq__ entry_points is_param_in_hook_signature profile record_function signal to".split()
    assert {name for _, name, _ in cheap.REPLACED} >= {*replaced}
    for owner, name, usual in cheap.REPLACED:
        monkeypatch.setattr(owner, name, usual)
    other, others, theirs = trained()
    assert equal(net, other)
    assert metrics == others
    assert streams == theirs


def test_a_value_elsewhere_is_moved():
    """On the meta device, which holds no numbers, in the place of a GPU."""
    metric = _ResultMetric.__new__(_ResultMetric)
    torch.nn.Module.__init__(metric)
    metric.__dict__.update(is_tensor=True, value=torch.zeros(2))
    assert metric.to("cpu") is metric
    assert metric.to(torch.device("meta")).value.device.type == "meta"


def test_stages_are_equal_as_ever():
    assert TrainerFn.FITTING == TrainerFn.FITTING == "fit" == TrainerFn.FITTING.value
    assert TrainerFn.FITTING == "FIT"
    assert TrainerFn.FITTING != TrainerFn.TESTING
    assert RunningStage.TESTING == TrainerFn.TESTING


def usual_and_cheap(name):
    (module, usual), *_ = [(owner, u) for owner, n, u in cheap.REPLACED if n == name]
    return usual, getattr(module, name)


class Hooks:
    def named(self, batch, batch_idx):
        pass

    def others(self, *args):
        pass

    @functools.wraps(named)
    def wrapped(self, *args):
        pass


@pytest.mark.parametrize("question", [("batch_idx",), ("batch", True), ("none",), ("none", True), ("none", True, 2)])
def test_a_signature_is_read_as_ever(question):
    usual, cheaper = usual_and_cheap("is_param_in_hook_signature")
    hooks = Hooks()
    for hook in (hooks.named, Hooks.named, hooks.others, hooks.wrapped, lambda self, batch_idx: None):
        assert cheaper(hook, *question) == cheaper(hook, *question) == usual(hook, *question)


def test_handlers_of_signals_are_put_back():
    usual, cheaper = usual_and_cheap("signal")
    before = {number: usual.getsignal(number) for number in usual.valid_signals() - {usual.SIGKILL, usual.SIGSTOP}}
    fit(max_epochs=1)
    assert {number: usual.getsignal(number) for number in before} == before
    assert {number: cheaper.getsignal(number) for number in before} == before


def test_the_signature_of_an_update_is_read_as_ever():
    usual, cheaper = usual_and_cheap("inspect")
    metric = MeanMetric()
    for update in (metric.update, MeanMetric.update, MeanMetric.update.__get__(metric), MinMetric.update):
        assert cheaper.signature(update) == cheaper.signature(update) == usual.signature(update)


@pytest.mark.parametrize("name", ["PL_TRAINER_DEVICES", "PL_TRAINER_NO_ARGUMENT", "PL_GLOBAL_SEED"])
def test_arguments_in_the_environment_are_read_as_ever(name, monkeypatch):
    usual, cheaper = usual_and_cheap("_parse_env_variables")
    assert vars(cheaper(Trainer)) == {}
    monkeypatch.setenv(name, "2")
    assert vars(cheaper(Trainer)) == vars(usual(Trainer)) == ({"devices": 2} if "DEVICES" in name else {})


def test_hooks_are_named_as_ever():
    """Each hook is told its own name, and the one around it gets its name back."""
    seen = []

    class Seen(Net):
        def on_train_batch_start(self, *args):
            seen.append(self._current_fx_name)

        def training_step(self, batch, batch_idx):
            seen.append(self._current_fx_name)
            return super().training_step(batch, batch_idx)

    fit(net=Seen(), max_epochs=1)
    assert seen[:2] == ["on_train_batch_start", "training_step"]
    functions = [owner for owner, name, _ in cheap.REPLACED if name == "__code__"]
    assert {"_call_lightning_module_hook", "_call_callback_hooks"} <= {function.__name__ for function in functions}


def test_what_is_profiled_may_fail():
    profiler = PassThroughProfiler()
    with pytest.raises(KeyError), profiler.profile("it") as name:
        raise KeyError(name)
