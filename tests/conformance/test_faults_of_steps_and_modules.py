"""Tests of the conditions: callbacks with one fault each, and the condition that sees it."""

from typing import ClassVar

import pytest
import torch

from lightning_objectives._trainer.callback import Callback
from lightning_objectives._trainer.patch import Patch
from lightning_objectives.discovery import methods
from lightning_objectives.testing.conformance import Case, PlugIn, Trial, assert_conforms, conditions, outcome
from lightning_objectives.testing.conformance.plug_ins import verbs
from lightning_objectives.testing.signals import build


class Sound(Callback):
    """Counts the steps of the optimizer, and does nothing else."""

    zero: ClassVar = {"on": False}
    leaves_training_alone = True

    def __init__(self, teacher=None):
        self.on = True
        self.teacher = teacher
        self.count = 0

    def on_train_start(self, trainer, pl_module):
        self.count = 0

    def on_train_end(self, trainer, pl_module):
        self.count = trainer.global_step // len(trainer.optimizers)

    def state_dict(self):
        return {"count": self.count}


class CountsBatches(Sound):
    def on_train_batch_end(self, *_):
        self.count += 1

    def on_train_end(self, trainer, pl_module):
        pass


class CountsEvaluations(CountsBatches):
    def on_before_backward(self, *_):
        self.count += 1

    def on_train_batch_end(self, *_):
        pass


class CountsOptimizers(CountsBatches):
    def on_before_optimizer_step(self, *_):
        self.count += 1

    def on_train_batch_end(self, *_):
        pass


class Acts(Sound):
    leaves_training_alone = False


class ChangesGradientsLast(Acts):
    def on_train_start(self, trainer, pl_module):
        def louder(inner, *args, **kwargs):
            inner(*args, **kwargs)
            for p in pl_module.parameters() if self.on else ():
                p.grad.mul_(2)

        self.patch = Patch(pl_module, "configure_gradient_clipping", louder)

    def on_train_end(self, trainer, pl_module):
        self.patch.remove()


class MovesTheWeights(Acts):
    def on_train_batch_end(self, trainer, pl_module, *_):
        with torch.no_grad():
            for p in pl_module.parameters() if self.on else ():
                p.mul_(0.9)


class TakesAStepForADict(Acts):
    """Believes that every step returns a tensor."""

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        if len(outputs) == 1 and self.on:
            pl_module.fc.weight.data.mul_(0.9)


class AddsTheBatchNumber(Acts):
    """Believes that every step is given the number of its batch."""

    def on_train_start(self, trainer, pl_module):
        def step(inner, batch, batch_idx):
            return inner(batch, batch_idx) * (2 if self.on else 1)

        self.patch = Patch(pl_module, "training_step", step)

    def on_train_end(self, trainer, pl_module):
        self.patch.remove()


class AveragesEveryBuffer(Sound):
    def on_train_end(self, trainer, pl_module):
        for buffer in pl_module.buffers() if self.on else ():
            if not buffer.is_floating_point() and buffer.dtype != torch.bool:
                buffer.copy_(buffer * 0.999)


class Unties(Sound):
    def on_train_start(self, trainer, pl_module):
        layer = pl_module.backbone[3]
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone()) if self.on else layer.weight


class RunsTwice(Sound):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        state = torch.get_rng_state()
        pl_module(batch[0]) if self.on else None
        torch.set_rng_state(state)


class TrainsEverything(Sound):
    def on_train_batch_start(self, trainer, pl_module, *_):
        pl_module.backbone.training = self.on or pl_module.backbone.training
        for part in pl_module.modules() if self.on else ():
            part.training = True


class LetsTheTeacherTrain(Sound):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.teacher.train()(batch[0])


class SwallowsTheUsersHook(Sound):
    def on_fit_start(self, trainer, pl_module):
        self.patch = Patch(pl_module, "on_save_checkpoint", lambda inner, checkpoint: None)

    def teardown(self, trainer, pl_module, stage):
        self.patch.remove()

    def on_train_start(self, trainer, pl_module):
        trainer.save_checkpoint(trainer.default_root_dir + "/a.ckpt")


class WritesWhatWasLeftOut(Sound):
    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["state_dict"] |= dict(pl_module.named_parameters())


class Draws(Sound):
    def on_train_batch_end(self, *_):
        if self.on:
            torch.rand(1)


class BuildsTooEarly(Sound):
    def setup(self, trainer, pl_module, stage):
        assert list(pl_module.parameters()), "there is nothing to train"


class Remembers(Acts):
    """Keeps what a ruined training left."""

    mean = 0.0

    def on_before_backward(self, trainer, pl_module, loss):
        self.mean = 0.9 * self.mean + 0.1 * loss.item()

    def on_train_batch_end(self, trainer, pl_module, *_):
        if self.on:
            pl_module.fc.weight.data.mul_(1 + 0.01 * self.mean)


class Overflows(Acts):
    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        if self.on:
            pl_module.fc.weight.data.add_(1e-3 * outputs["loss"].exp())


class NamesTheCompilation(Sound):
    def on_train_end(self, trainer, pl_module):
        self.names = [name for name, _ in pl_module.named_parameters()]

    def state_dict(self):
        return {"names": self.names}


class CompilesAgain(Sound):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 8:  # once is enough, when the training is warm
            torch._dynamo.reset()


class DoublesEveryCriterion(Acts):
    def on_train_start(self, trainer, pl_module):
        def doubled(inner, *args, **kwargs):
            return inner(*args, **kwargs) * (2 if self.on else 1)

        self.patch = Patch(torch.nn.functional, "cross_entropy", doubled)

    def on_train_end(self, trainer, pl_module):
        self.patch.remove()


class MixesTheFirst(Acts):
    """Changes the first tensor of a batch, whichever it is."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        while self.on and not isinstance(batch, torch.Tensor):
            batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        if self.on:
            batch.copy_(batch * 0.5)


FAULTS = {
    "accumulation": CountsBatches,
    "lbfgs": CountsEvaluations,
    "several_optimizers": CountsOptimizers,
    "clipping_by_norm": ChangesGradientsLast,
    "clipping_by_value": ChangesGradientsLast,
    "a_step_that_returns_none": MovesTheWeights,
    "a_step_that_returns_a_dict": TakesAStepForADict,
    "a_step_of_the_batch_alone": AddsTheBatchNumber,
    "frozen_weights": MovesTheWeights,
    "tied_weights": Unties,
    "buffers_of_all_types": AveragesEveryBuffer,
    "batch_norm_of_no_momentum": RunsTwice,
    "frozen_batch_norm": TrainsEverything,
    "a_net_of_configure_model": BuildsTooEarly,
    "train_in_a_hook": LetsTheTeacherTrain,
    "an_on_save_checkpoint_of_the_user": SwallowsTheUsersHook,
    "a_state_dict_that_drops_keys": WritesWhatWasLeftOut,
    "random_draws": Draws,
    "a_sample_that_is_not_a_number": Remembers,
    "great_logits": Overflows,
    "a_compiled_part": NamesTheCompilation,
    "a_part_compiled_in_place": CompilesAgain,
    "several_criteria": DoublesEveryCriterion,
    "a_combined_loader": MixesTheFirst,
}


def cell(condition, cls):
    row = PlugIn(cls.__name__, lambda case: [cls(case.settings["teacher"]())])
    found = next(c for c in conditions() if c.name == condition)
    return outcome(found, Trial(row, Case()))


@pytest.mark.parametrize("condition", FAULTS)
def test_a_fault_is_seen(condition):
    error = AssertionError if FAULTS[condition] is not AddsTheBatchNumber else TypeError
    with pytest.raises(error):
        cell(condition, FAULTS[condition])


@pytest.mark.parametrize("condition", [name for name in FAULTS if "compiled" not in name])
def test_what_is_sound_passes(condition):
    assert cell(condition, Sound) == "pass"


def averaging_methods_with_a_decay():
    return [cls for room, cls in methods() if room == "averaging" and "decay" in build(cls).settings()]


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("method", averaging_methods_with_a_decay())
def test_indices_in_buffers_are_never_averaged(method, decay, buffers):
    """An index of positions, as attention with windows keeps it, is no number to be averaged."""
    cls = verbs()[method.callback]

    def made():
        return cls(method(**{**build(method).settings(), "decay": decay}), buffers=buffers)

    assert assert_conforms(made, only=["buffers_of_all_types"]) == {"buffers_of_all_types": "pass"}
