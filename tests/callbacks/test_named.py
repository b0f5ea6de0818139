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
PAIRS = [
    (EMACallback(decay=0.5, every_n_steps=2), AverageWeights(EMA(decay=0.5), every_n_steps=2)),
    (BEMACallback(lag=5, start_step=1), AverageWeights(BEMA(lag=5), start_step=1)),
    (LossReweightingCallback(strategy="quadratic"), ReweightSamples(LossBasedReweighting(strategy="quadratic"))),
    (
        WSMCallback(shape="linear", last=2, every_n_steps=2),
        MergeCheckpoints(WSM(shape="linear"), last=2, every_n_steps=2),
    ),
    (DualHeadKDCallback(alpha=0.5, teacher=TEACHER), Distill(DualHead(alpha=0.5), teacher=TEACHER)),
    (MultiSampleDropoutCallback(num_samples=2), WrapHead(MultiSampleDropout(num_samples=2))),
]


@pytest.mark.parametrize(("ready", "general"), PAIRS)
def test_it_is_the_general_form(ready, general):
    assert equal(fit(ready)[0], fit(general)[0])
    again = pickle.loads(pickle.dumps(ready))
    assert equal(fit(again)[0], fit(general)[0])


@pytest.mark.parametrize("cls", [type(ready) for ready, _ in PAIRS])
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
