"""Tests of the conditions of tests: callbacks with one fault each, and the condition that sees it."""

from typing import ClassVar

import pytest
import torch

from lightning_objectives._trainer.callback import Callback
from lightning_objectives._trainer.patch import Patch
from lightning_objectives.testing.conformance import assert_conforms, conditions


class Sound(Callback):
    """Makes the network surer of itself from batch to batch, by the scale of its head's weights."""

    zero: ClassVar = {"factor": 1.0}
    leaves_training_alone = True
    changes_tests = True

    def __init__(self):
        self.factor = 1.5
        self.loader = self.source = self.patch = None

    def setup(self, trainer, pl_module, stage):
        if stage in ("test", "predict"):
            self.begin(trainer, pl_module)

    def begin(self, trainer, pl_module):
        self.patch = Patch(pl_module.fc, "forward", lambda inner, x: inner(x))

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        weight = pl_module.fc.weight.data
        if self.source is None:
            self.source = weight.clone()
        if dataloader_idx != self.loader:
            weight.copy_(self.source)
        self.loader = dataloader_idx
        weight.mul_(self.factor)

    on_predict_batch_start = on_test_batch_start

    def release(self, trainer, pl_module):
        if self.source is not None:
            pl_module.fc.weight.data.copy_(self.source)
        if self.patch is not None:
            self.patch.remove()
        self.loader = self.source = self.patch = None


class RemembersTheTest(Sound):
    def release(self, trainer, pl_module):
        super().release(trainer, pl_module)
        self.factor *= self.factor


class LeavesWeights(Sound):
    def release(self, trainer, pl_module):
        self.source = None
        super().release(trainer, pl_module)


class GoesOnInTheNextLoader(Sound):
    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx)


class KeepsTheWeightsOfTheSetup(Sound):
    def begin(self, trainer, pl_module):
        super().begin(trainer, pl_module)
        self.source = pl_module.fc.weight.data.clone()


class PredictsWithAGradient(Sound):
    def begin(self, trainer, pl_module):
        trainer.predict_loop.inference_mode = False
        super().begin(trainer, pl_module)
        self.patch.around = torch.enable_grad()(self.patch.around)

    def release(self, trainer, pl_module):
        trainer.predict_loop.inference_mode = True
        super().release(trainer, pl_module)


class InSinglePrecision(Sound):
    def begin(self, trainer, pl_module):
        super().begin(trainer, pl_module)
        self.patch.around = lambda inner, x: inner(x).float()


class SwitchesInferenceModeOn(Sound):
    def begin(self, trainer, pl_module):
        super().begin(trainer, pl_module)
        trainer.test_loop.inference_mode = True


class ReleasesAtTeardownAlone(Sound):
    def on_exception(self, trainer, pl_module, exception):
        pass


class SaysThatItChangesNothing(Sound):
    changes_tests = False


class ChangesNothing(Sound):
    def __init__(self):
        super().__init__()
        self.factor = 1.0


FAULTS = {
    "an_interrupted_test": [ReleasesAtTeardownAlone],
    "predicted_batches": [PredictsWithAGradient],
    "several_test_loaders": [GoesOnInTheNextLoader],
    "tested_in_other_precisions": [InSinglePrecision],
    "tested_twice": [ChangesNothing, LeavesWeights, RemembersTheTest, SaysThatItChangesNothing],
    "tested_with_a_checkpoint": [KeepsTheWeightsOfTheSetup],
    "tested_without_inference_mode": [SwitchesInferenceModeOn],
}


def test_each_condition_has_a_fault():
    assert FAULTS.keys() == {condition.name for condition in conditions() if condition.family == "tests"}


@pytest.mark.parametrize("condition", FAULTS)
def test_what_is_sound_passes(condition):
    assert assert_conforms(Sound, only=[condition]) == {condition: "pass"}


@pytest.mark.parametrize(("condition", "fault"), [(name, fault) for name, faults in FAULTS.items() for fault in faults])
def test_a_fault_is_seen(condition, fault):
    with pytest.raises(AssertionError, match="the plug-in: "):
        assert_conforms(fault, only=[condition])
