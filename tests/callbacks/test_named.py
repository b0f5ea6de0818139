"""The ready-made callbacks: one constructor for a method and its callback."""

import inspect
import pickle
from typing import get_type_hints

import pytest
import torch
from helpers import equal, fit
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback

from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks import (
    AverageWeights,
    BEMACallback,
    Distill,
    DualHeadKDCallback,
    EMACallback,
    LossReweightingCallback,
    MergeCheckpoints,
    MultiSampleDropoutCallback,
    ReweightSamples,
    WrapHead,
    WSMCallback,
)
from lightning_objectives.distillation import DualHead
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.merging import WSM
from lightning_objectives.weighting import LossBasedReweighting

TEACHER = torch.nn.Linear(4, 3)
READY = [  # the ready-made form, the general one, and the ready-made one with a setting of another value
    (
        EMACallback(decay=0.5, every_n_steps=2),
        AverageWeights(EMA(decay=0.5), every_n_steps=2),
        EMACallback(decay=0.6, every_n_steps=2),
    ),
    (
        BEMACallback(lag=5, start_step=1),
        AverageWeights(BEMA(lag=5), start_step=1),
        BEMACallback(lag=5, start_step=2),
    ),
    (
        LossReweightingCallback(strategy="quadratic"),
        ReweightSamples(LossBasedReweighting(strategy="quadratic")),
        LossReweightingCallback(),
    ),
    (
        WSMCallback(shape="linear", last=2, every_n_steps=2),
        MergeCheckpoints(WSM(shape="linear"), last=2, every_n_steps=2),
        WSMCallback(shape="square", last=2, every_n_steps=2),
    ),
    (
        DualHeadKDCallback(alpha=0.5, teacher=TEACHER),
        Distill(DualHead(alpha=0.5), teacher=TEACHER),
        DualHeadKDCallback(alpha=0.6, teacher=TEACHER),
    ),
    (
        MultiSampleDropoutCallback(num_samples=2),
        WrapHead(MultiSampleDropout(num_samples=2)),
        MultiSampleDropoutCallback(num_samples=3),
    ),
]


def result(callback):
    """The weights after a fit, or those of the merge, which leaves the module alone."""
    net, _ = fit(callback)
    return torch.load(callback.path)["state_dict"] if isinstance(callback, MergeCheckpoints) else net


@pytest.mark.parametrize(("ready", "general", "other"), READY)
def test_it_is_the_general_form(ready, general, other):
    expected = result(general)
    assert equal(result(ready), expected)
    assert equal(result(pickle.loads(pickle.dumps(ready))), expected)
    assert not equal(result(other), expected)


def settings(cls):
    return {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize(("ready", "general", "other"), READY)
def test_it_has_the_settings_of_both_with_their_defaults_and_types(ready, general, other):
    method, callback, mine = type(general.methods()[0]), type(general), type(ready)
    # The first parameter of the callback is the method, whatever may follow it.
    _, *placing = inspect.signature(callback).parameters
    beside = {"base"} - {*getattr(method, "asks", ())}  # what the callback has for methods that ask for it
    beside |= {"samples", "layers", "teacher_layers"}  # for methods that remember, or compare hidden layers
    if callback is Distill:
        beside.add("stop_epoch")  # the method's own
    if callback in (ReweightSamples, WrapHead):
        beside.add("seed")  # for methods that draw from a generator
    placing = [name for name in placing if name not in beside]
    own, theirs = inspect.signature(method).parameters, inspect.signature(callback).parameters
    assert not own.keys() & set(placing), "a setting of both must be told apart"
    expected = {name: p.default for name, p in own.items()} | {name: theirs[name].default for name in placing}
    assert {name: p.default for name, p in settings(mine).items()} == expected
    types = get_type_hints(method.__init__) | get_type_hints(callback.__init__)
    for name, hint in get_type_hints(mine.__init__).items():
        assert hint == types[name], name
    for name in expected:
        assert f"\n    {name}: " in inspect.getdoc(mine), f"{mine.__name__} does not document {name}"


OTHERS = {
    "decay": 0.5,
    "warmup": True,
    "power": 0.75,
    "start_step": 3,
    "every_n_steps": 2,
    "start_epoch": 4,
    "every_n_epochs": 5,
    "buffers": "average",
    "device": "cpu",
    "primary": False,
    "ema_power": 0.6,
    "bias_power": 0.4,
    "lag": 20,
    "multiplier": 2.0,
    "min_ema": 0.1,
    "shape": "linear",
    "ema_weight": 0.3,
    "last": 2,
    "evaluate": True,
    "keep": "sum",
    "directory": "snapshots",
    "strategy": "quadratic",
    "temperature": 0.4,
    "warmup_steps": 5,
    "unit": "element",
    "criterion": "loss_fn",
    "which": 1,
    "head": "fc",
    "input": 0,
    "batch_size": 8,
    "sample_dim": 1,
    "teacher_call": torch.nn.Module.__call__,
    "num_samples": 2,
    "p": 0.5,
    "alpha": 0.1,
    "auxiliary": "mlp",
    "align": True,
    "stop_epoch": 4,
    "stop_step": 30,
    "teacher": TEACHER,
    "weight": 0.7,
    "teacher_weights": "teacher.pt",
    "teacher_prefix": "teacher.",
    "teacher_head": "head",
    "data_normalization": ((0.0,), (1.0,)),
    "teacher_normalization": ((0.5,), (2.0,)),
    "cache": "logits",
    "parameters": "layers.*",
    "cache_top_k": 2,
    "seed": 9,
}
"""A value other than the default for each setting."""


@pytest.mark.parametrize(
    ("cls", "name"), [(type(ready), name) for ready, *_ in READY for name in settings(type(ready))]
)
def test_each_setting_arrives(cls, name):
    needed = {"teacher": ["teacher"], "teacher_normalization": ["data_normalization"], "cache_top_k": ["cache"]}
    required = [other for other, p in settings(cls).items() if p.default is p.empty]
    if cls is WSMCallback and name == "buffers":
        value = {"buffers": "recalibrate"}
    else:
        value = {other: OTHERS[other] for other in [name, *required, *needed.get(name, [])]}
    callback = cls(**value)
    method = callback.methods()[0]
    for other, p in settings(cls).items():
        owner = method if other in settings(type(method)) else callback
        assert getattr(owner, other) == value.get(other, p.default), other


@pytest.mark.parametrize("cls", [type(ready) for ready, *_ in READY])
def test_from_yaml(cls):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    path = f"lightning_objectives.callbacks.{cls.__name__}"
    names = [name for name in settings(cls) if isinstance(OTHERS[name], (str, float))]
    chosen = {name: OTHERS[name] for name in names if name not in ("keep", "evaluate")}
    if cls is DualHeadKDCallback:
        chosen["teacher"] = "resnet18"
    if cls is WSMCallback:
        chosen["buffers"] = "recalibrate"
    for in_steps in {"start_step", "every_n_steps"} & chosen.keys():
        del chosen[in_steps]  # In epochs instead.
    made = parser.instantiate_classes(parser.parse_object({"callback": {"class_path": path, "init_args": chosen}}))
    assert type(made.callback) is cls
    for name, value in chosen.items():
        owner = made.callback if hasattr(made.callback, name) else made.callback.methods()[0]
        assert getattr(owner, name) == value
    with pytest.raises(ArgumentError, match="typo"):
        parser.parse_object({"callback": {"class_path": path, "init_args": {**chosen, "typo": 1}}})


@pytest.mark.parametrize("cls", [type(ready) for ready, *_ in READY])
def test_its_signature_is_real(cls):
    parameters = inspect.signature(cls).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    required = {p.name: TEACHER for p in parameters if p.default is p.empty}
    assert list(required) in ([], ["teacher"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'typo'"):
        cls(typo=1, **required)


def test_a_teacher_is_required():
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'teacher'"):
        DualHeadKDCallback(alpha=0.5)


def test_the_settings_are_checked_by_their_owner():
    with pytest.raises(ValueError, match=r"decay=2 must be in \[0, 1\)"):
        EMACallback(decay=2)
