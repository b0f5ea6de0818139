"""Tests of the conditions on a GPU that is not there: callbacks with one fault each, and what is said of it."""

import inspect
from typing import ClassVar

import pytest
import torch

from lightning_objectives._trainer.callback import Callback
from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.kinds import Regularizer
from lightning_objectives.testing.conformance import assert_conforms, conditions
from lightning_objectives.testing.conformance.plug_ins import verbs


class Sound(Callback):
    """Scales the gradients on the device."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for p in pl_module.parameters():
            p.grad.mul_(torch.where(p.grad.norm() > 1, 0.5, 1.0))


class WaitsFirst(Sound):
    """The first step may prove things."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            assert bool((batch[1] >= 0).all())


class ReadsTheLoss(Sound):
    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.loss = float(outputs["loss"])


class BuildsFromData(Sound):
    def on_train_batch_start(self, trainer, pl_module, *_):
        self.betas = torch.tensor([0.9, 0.99], device=pl_module.device)


class IndexesByAMask(Sound):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.large = [p.grad[p.grad > 1] for p in pl_module.parameters()]


class KeepsLossesOnTheHost(Sound):
    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.loss = outputs["loss"].cpu()


class BranchesInTheBackwardPass(Sound):
    def on_train_start(self, trainer, pl_module):
        self.handle = pl_module.fc.weight.register_hook(lambda gradient: gradient if gradient.sum() > 0 else -gradient)

    def on_train_end(self, trainer, pl_module):
        self.handle.remove()


class WaitsInValidation(Sound):
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *_):
        self.classes = batch[1].unique()


class WaitsInATest(Sound):
    def on_test_batch_end(self, trainer, pl_module, outputs, batch, *_):
        self.classes = batch[1].unique()


class SaysThatItWaitsInATest(WaitsInATest):
    waits: ClassVar = {"tests_on_a_gpu": {"on_test_batch_end": "it counts classes"}}


class TakesTheHostsTensor(Sound):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pl_module.fc.bias.grad.add_(torch.zeros(3))


class KeepsAnAverageOnTheHost(Sound):
    def on_train_start(self, trainer, pl_module):
        self.average = torch.zeros(pl_module.fc.weight.shape)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.average.lerp_(pl_module.fc.weight.detach(), 0.1)


class LeavesTheGPU(Sound):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            pl_module.table = torch.arange(5)


class DoesAnotherThingThere(Sound):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if pl_module.device.type == "cuda":
            pl_module.fc.bias.grad.mul_(2)


class SaysThatItWaits(Sound):
    waits: ClassVar = {"on_a_gpu": {"on_train_batch_end": "it says so"}}


class SaysItOfAnother(ReadsTheLoss):
    waits: ClassVar = {"on_a_gpu": {"on_train_batch_start": "it says so"}}


class SaysItOfAnotherCondition(ReadsTheLoss):
    waits: ClassVar = {"two_gpus": {"on_train_batch_end": "it says so"}}


class SaysSo(ReadsTheLoss):
    waits: ClassVar = {"": {"on_train_batch_end": "someone reads the loss"}}


class ExchangesSizes(Sound):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if torch.distributed.is_initialized():
            sizes = [torch.zeros(1, device=pl_module.device) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(sizes, torch.full_like(sizes[0], len(batch[0])))
            self.sizes = torch.cat(sizes).tolist()


class Counting(Regularizer):
    """A method that waits."""

    def forward(self, logits):
        return logits.square().sum() / max(1, int((logits != 0).sum()))


class CountingWithAReason(Counting):
    waits = "the number of logits that are not 0 must be known"


FAULTS = {
    ReadsTheLoss: r"waits for the device in a step: item\(\) in on_train_batch_end \(conformance/test_faults_on_a_gpu",
    BuildsFromData: r"tensor\(\) of data in on_train_batch_start",
    IndexesByAMask: "boolean index in <listcomp>",
    KeepsLossesOnTheHost: "a copy to the CPU in on_train_batch_end",
    BranchesInTheBackwardPass: r"item\(\) in <lambda>",
    WaitsInValidation: r"unique2\(\) in on_validation_batch_end",
    LeavesTheGPU: r"must stay on the GPU, but \['table'\] lie on the CPU",
    DoesAnotherThingThere: "the weights must be those of the training on the CPU",
    SaysThatItWaits: r"declares waits for the device in \['on_train_batch_end'\], where it does not wait",
    SaysItOfAnother: "Mend it, or declare why",
    SaysItOfAnotherCondition: "Mend it, or declare why",
}


@pytest.mark.parametrize("cls", FAULTS, ids=lambda cls: cls.__name__)
def test_a_fault_is_seen(cls):
    with pytest.raises(AssertionError, match=FAULTS[cls]):
        assert_conforms(cls, only=["on_a_gpu"])


def test_a_wait_in_a_test_is_seen_or_declared():
    with pytest.raises(AssertionError, match=r"unique2\(\) in on_test_batch_end"):
        assert_conforms(WaitsInATest, only=["tests_on_a_gpu"])
    said = assert_conforms(SaysThatItWaitsInATest, only=["tests_on_a_gpu"])
    assert said == {"tests_on_a_gpu": "waits: it counts classes"}
    assert assert_conforms(WaitsFirst, only=["tests_on_a_gpu"]) == {"tests_on_a_gpu": "pass"}


@pytest.mark.parametrize("cls", [TakesTheHostsTensor, KeepsAnAverageOnTheHost], ids=lambda cls: cls.__name__)
def test_mixed_devices_are_an_error(cls):
    with pytest.raises(RuntimeError, match="takes tensors of the GPU and of the CPU"):
        assert_conforms(cls, only=["on_a_gpu"])


def test_the_exchange_between_ranks_counts():
    assert assert_conforms(ExchangesSizes, only=["on_a_gpu"]) == {"on_a_gpu": "pass"}
    with pytest.raises(AssertionError, match=r"tolist\(\) in on_train_batch_start"):
        assert_conforms(ExchangesSizes, only=["two_gpus"])


def test_a_method_declares_its_own_waits():
    def placed(method):
        return lambda: AddRegularizer(method())

    with pytest.raises(AssertionError, match=r"item\(\) in forward"):
        assert_conforms(placed(Counting), only=["on_a_gpu"])
    said = assert_conforms(placed(CountingWithAReason), only=["on_a_gpu"])
    assert said == {"on_a_gpu": f"waits: {CountingWithAReason.waits}"}


@pytest.mark.parametrize("name", sorted(verbs()))
def test_a_wait_for_the_device_is_in_the_docstring(name):
    cls = verbs()[name]
    text = " ".join(inspect.getdoc(cls).split())
    reasons = {why for functions in cls.waits.values() for why in functions.values()}
    assert not [why for why in reasons if why not in text]


@pytest.mark.parametrize("name", sorted(verbs()))
def test_waits_are_declared_for_conditions_that_there_are(name):
    known = {"", *(condition.name for condition in conditions() if condition.family == "devices")}
    assert set(verbs()[name].waits) <= known


def test_sound_callbacks_pass():
    for cls in (Sound, WaitsFirst):
        assert set(assert_conforms(cls, only=["on_a_gpu", "two_gpus"]).values()) == {"pass"}
    assert assert_conforms(SaysSo, only=["on_a_gpu"]) == {"on_a_gpu": "waits: someone reads the loss"}
