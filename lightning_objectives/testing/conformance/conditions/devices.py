"""A GPU that is not there: its tensors lie on the CPU, its waits are counted. Real GPUs stay unmeasured."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_objectives.testing.conformance.case import Classifier
from lightning_objectives.testing.conformance.check import Trial, told
from lightning_objectives.testing.conformance.variants import Make, own, variant
from lightning_objectives.testing.fake_gpu import FakeGPU, Wait


def on_a_gpu(trial: Trial) -> str:
    """No step after the first waits for the device, in training and evaluation, and no devices are mixed."""
    return _waits(trial, on_a_gpu, trial.case.module)


def ignored_targets_on_a_gpu(trial: Trial) -> str:
    """The same where targets do not count, so that the number of rows is known on the device alone."""
    criterion = partial(F.cross_entropy, ignore_index=0)
    return _waits(own(trial, Classifier), ignored_targets_on_a_gpu, _comparing(criterion))


def a_named_criterion_on_a_gpu(trial: Trial) -> str:
    """The same with a criterion of the user's own, named by ``criterion="loss_fn"``."""
    options = {"criterion": "loss_fn"}
    return _waits(own(trial, Classifier), a_named_criterion_on_a_gpu, _comparing(_Own()), options=options)


def a_scaler_on_a_gpu(trial: Trial) -> str:
    """The same with a gradient scaler, whose own waits are the user's."""

    def scaled() -> dict[str, Any]:
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0))]}

    return _waits(trial, a_scaler_on_a_gpu, trial.case.module, settings=scaled)


def two_gpus(trial: Trial) -> str:
    """The same in a group of two alike ranks: what they exchange is counted too."""
    return _waits(trial, two_gpus, trial.case.module, group=_two_ranks)


# -- how


def _waits(
    trial: Trial,
    condition: Callable[..., Any],
    module: Make,
    *,
    options: dict[str, Any] | None = None,
    settings: Callable[[], dict[str, Any]] = dict,
    group: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> str:
    """Train and validate; each wait is one of the training without the plug-in, or declared, or an error."""

    def fit(callbacks: list[Any]) -> list[Wait]:
        data = trial.case.loader_for(callbacks).dataset
        with FakeGPU() as gpu, group():
            gpu.counts = False
            L.seed_everything(0, verbose=False)
            trainer = trial.case.trainer(
                _Stops(gpu),
                *callbacks,
                _Counts(gpu),
                strategy=_OnTheGPU("cuda:0"),
                max_epochs=1,
                log_every_n_steps=1,
                **settings(),
            )
            trainer.fit(module(), *(DataLoader(data, batch_size=_BATCH, drop_last=True) for _ in range(2)))
        return gpu.waits

    plain = {wait.place for wait in trial.once(lambda: fit([]), condition.__name__)}
    callbacks = told(trial.make(), options)
    waits = [wait for wait in fit(callbacks) if wait.place not in plain]
    declared = {name: why for c in callbacks for name, why in c.waits.get(condition.__name__, {}).items()}
    rooms = {method.room: method.waits for c in callbacks for method in c.methods() if getattr(method, "waits", "")}
    unknown = sorted({str(w) for w in waits if w.function not in declared and w.folder not in rooms})
    trial.require(not unknown, f"it waits for the device in a step: {'; '.join(unknown)}. Mend it, or declare why.")
    idle = [n for n in declared if all(w.function != n for w in waits)]
    idle += [room for room in rooms if all(w.folder != room for w in waits)]
    trial.require(not idle, f"it declares waits for the device in {idle}, where it does not wait.")
    reasons = dict.fromkeys([*declared.values(), *rooms.values()])
    return f"waits: {'; '.join(reasons)}" if reasons else "pass"


_BATCH = 4
"""All batches have one shape, since that is what a first step proves things for."""


class _OnTheGPU(SingleDeviceStrategy):
    """Moves the module and the batches to a GPU that no accelerator has to set up."""

    def setup_environment(self) -> None:
        """Nothing is to be set up."""


class _Stops(L.Callback):
    """Comes before the plug-in: what it does between the steps does not count."""

    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu = gpu

    def _stop(self, *_: Any) -> None:
        self.gpu.counts = False

    on_train_epoch_end = on_validation_start = on_validation_epoch_end = _stop


class _Counts(L.Callback):
    """Comes behind it: after the first step every wait counts."""

    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu = gpu

    def _start(self, *_: Any, **__: Any) -> None:
        self.gpu.counts = True

    on_train_batch_end = on_validation_batch_end = _start


class _Own(nn.Module):
    """A criterion that is none of torch's."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean cross entropy."""
        return -logits.log_softmax(1).gather(1, target[:, None]).mean()


def _comparing(criterion: Callable[..., Tensor]) -> Make:
    def methods(user: Any) -> dict[str, Any]:
        def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
            loss: Tensor = self.loss_fn(self(batch[0]), batch[1])
            return loss

        def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
            self.loss_fn(self(batch[0]), batch[1])

        return {"training_step": training_step, "validation_step": validation_step}

    def prepare(module: Any) -> None:
        module.loss_fn = criterion

    return variant(Classifier, methods, prepare)


@contextmanager
def _two_ranks() -> Iterator[None]:
    """A group of two ranks that do the same, in which this process is the first."""

    def all_gather(parts: list[Tensor], tensor: Tensor, *_: Any, **__: Any) -> None:
        for part in parts:
            part.copy_(tensor)

    def all_reduce(tensor: Tensor, *_: Any, **__: Any) -> None:
        tensor.mul_(2)

    def all_gather_object(parts: list[Any], value: Any, *_: Any, **__: Any) -> None:
        parts[:] = [value] * len(parts)

    with mock.patch.multiple(
        torch.distributed,
        is_initialized=lambda: True,
        get_world_size=lambda *_: 2,
        get_rank=lambda *_: 0,
        all_gather=all_gather,
        all_reduce=all_reduce,
        all_gather_object=all_gather_object,
        barrier=lambda *_, **__: None,
    ):
        yield
