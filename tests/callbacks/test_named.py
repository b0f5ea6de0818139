"""The ready-made callbacks: one constructor for a method and its callback."""

import inspect
import pickle

import pytest
import torch
from helpers import equal, fit

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


@pytest.mark.parametrize("cls", [type(ready) for ready, *_ in READY])
def test_its_signature_is_real(cls):
    parameters = inspect.signature(cls).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    required = {p.name: TEACHER for p in parameters if p.default is p.empty}
    assert list(required) in ([], ["teacher"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'typo'"):
        cls(typo=1, **required)


def test_a_teacher_is_required():
    with pytest.raises(TypeError, match=r"missing a required .*argument: 'teacher'"):
        DualHeadKDCallback(alpha=0.5)


def test_the_settings_are_checked_by_their_owner():
    with pytest.raises(ValueError, match=r"decay=2 must be in \[0, 1\)"):
        EMACallback(decay=2)
