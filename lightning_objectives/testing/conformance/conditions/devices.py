"""A GPU that is not there: its tensors lie on the CPU, its waits are counted. Real GPUs stay unmeasured."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_objectives.kinds import Method
from lightning_objectives.testing.conformance.case import Classifier
from lightning_objectives.testing.conformance.check import Trial, told
from lightning_objectives.testing.conformance.variants import Make, own, variant
from lightning_objectives.testing.fake_gpu import FakeGPU, Wait
from lightning_objectives.testing.fake_gpu.places import GPU


def on_a_gpu(trial: Trial) -> str:
    """No step after the second waits for the device, in training and evaluation, and no devices are mixed."""
    return _waits(trial, on_a_gpu, trial.case.module)


def ignored_targets_on_a_gpu(trial: Trial) -> str:
    """The same where targets do not count, so that the number of rows is known on the device alone."""
    criterion = partial(F.cross_entropy, ignore_index=0)
    return _waits(own(trial, Classifier), ignored_targets_on_a_gpu, _comparing(criterion))


def unreduced_losses_on_a_gpu(trial: Trial) -> str:
    """The same with ``reduction="none"``, where the user's code reduces the losses itself."""

    def mean(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none").mean()

    return _waits(own(trial, Classifier), unreduced_losses_on_a_gpu, _comparing(mean))


def two_classes_on_a_gpu(trial: Trial) -> str:
    """The same with ``F.binary_cross_entropy_with_logits`` of one logit, whose targets are floats."""

    def binary(logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits[:, 0], (target > 0).float())

    return _waits(own(trial, Classifier), two_classes_on_a_gpu, _comparing(binary))


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


def tests_on_a_gpu(trial: Trial) -> str:
    """The same in a test, after a validation."""

    def test(callbacks: list[Any]) -> list[Wait]:
        with FakeGPU() as gpu:
            counts = _Counts(gpu)
            trainer = trial.case.trainer(_Stops(gpu), *callbacks, counts, strategy=_OnTheGPU(GPU), limit_val_batches=4)
            torch.manual_seed(0)
            net = trial.case.module()
            val, tested = (DataLoader(trial.case.data(), batch_size=_BATCH, drop_last=True) for _ in range(2))
            trainer.validate(net, val, verbose=False)
            trainer.test(net, tested, verbose=False)
            trial.require("test" in counts.steps, f"no step of the test counted but {counts.steps}.")
        return gpu.waits

    plain, callbacks = trial.once(lambda: test([]), "tests_on_a_gpu"), trial.make()
    users = {(wait.path, wait.line) for wait in plain}
    waits = [wait for wait in test(callbacks) if (wait.path, wait.line) not in users]
    reasons = _declared(trial, callbacks, "tests_on_a_gpu", waits, trains=False)
    return f"waits: {'; '.join(reasons)}" if reasons else "pass"


# -- how


@dataclass
class _Run:
    """What is left of a training on the GPU that is not there."""

    waits: list[Wait]
    weights: dict[str, Tensor]


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

    def fit(callbacks: list[Any]) -> _Run:
        with FakeGPU() as gpu, group():
            counts = _Counts(gpu)
            net = _fit(trial, module, [_Stops(gpu), *callbacks, counts], strategy=_OnTheGPU(GPU), **settings())
        trial.require({*counts.steps} == {"train", "validate"}, f"no step counted but {counts.steps}.")
        trial.require(not counts.lost, f"the module must stay on the GPU, but {counts.lost} lie on the CPU.")
        return _Run(gpu.waits, net.state_dict())

    plain = trial.once(lambda: fit([]), condition.__name__)
    callbacks = told(trial.make(), options)
    run = fit(callbacks)
    users = {(wait.path, wait.line) for wait in plain.waits}
    waits = [wait for wait in run.waits if (wait.path, wait.line) not in users]
    reasons = _declared(trial, callbacks, condition.__name__, waits)
    if condition is on_a_gpu and not any(callback.draws for callback in callbacks):
        cpu = _fit(trial, module, trial.make()).state_dict()
        far = [n for n, value in run.weights.items() if not torch.allclose(value, cpu[n], rtol=1e-3, atol=1e-5)]
        trial.require(not far, f"the weights must be those of the training on the CPU, but {far} are not.")
    return f"waits: {'; '.join(reasons)}" if reasons else "pass"


def _declared(
    trial: Trial, callbacks: list[Any], condition: str, waits: list[Wait], *, trains: bool = True
) -> list[str]:
    """Why it waits, each reason once: by the function of a callback that waits, or by the folder of a method.

    What is declared must wait in a training with its validation; in a test alone it need not.
    """
    functions: dict[str, str] = {}
    for callback in callbacks:
        functions |= {**callback.waits.get("", {}), **callback.waits.get(condition, {})}
    methods = [m for callback in callbacks for m in callback.methods() if getattr(m, "waits", "")]
    folders = {method: _folders(method) for method in methods}
    known = {folder for parts in folders.values() for folder in parts}
    unknown = {str(w): None for w in waits if w.function not in functions and w.path.parent not in known}
    trial.require(not unknown, f"it waits for the device in a step: {'; '.join(unknown)}. Mend it, or declare why.")
    idle = [name for name in functions if all(wait.function != name for wait in waits)]
    still = [method for method, parts in folders.items() if all(wait.path.parent not in parts for wait in waits)]
    said = [*idle, *map(str, still)]
    trial.require(not said or not trains, f"it declares waits for the device in {said}, where it does not wait.")
    reasons = [reason for name, reason in functions.items() if name not in idle]
    return list(dict.fromkeys([*reasons, *(method.waits for method in methods if method not in still)]))


def _folders(method: Any) -> set[Path]:
    """The folder of a method, and those of the methods that it uses."""
    parts = [part for part in method.modules() if isinstance(part, Method)] if isinstance(method, nn.Module) else []
    return {Path(inspect.getfile(type(part))).parent for part in (method, *parts)}


def _fit(trial: Trial, module: Make, callbacks: list[Any], **settings: Any) -> L.LightningModule:
    L.seed_everything(0, verbose=False)
    net, data = module(), (trial.case.loader_for(callbacks).dataset, trial.case.data())
    settings = {"max_epochs": 1, "limit_val_batches": 4, "log_every_n_steps": 1, **settings}
    trainer = trial.case.trainer(*callbacks, **settings)
    torch.manual_seed(0)
    train, val = (DataLoader(part, batch_size=_BATCH, drop_last=True) for part in data)
    trainer.fit(net, train, val)
    return net


_PROOFS = 2
"""The steps that may wait, to prove where things are: what the first does not see, the second does."""
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

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The training has no more steps."""
        self.gpu.counts = False

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """A validation stands between two steps of the training."""
        self.gpu.counts = False

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The validation has no more steps."""
        self.gpu.counts = False

    on_test_epoch_end = on_validation_epoch_end


class _Counts(L.Callback):
    """Comes behind it: after the first steps every wait counts."""

    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu = gpu
        self.gpu.counts = False
        self.steps: list[str] = []
        """The steps that counted."""
        self.lost: list[str] = []
        """What of the module did not stay on the GPU."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Look where the module lies, before Lightning moves it back."""
        self.lost = [name for name, tensor in pl_module.state_dict().items() if self.gpu.place(tensor) != "gpu"]

    def _start(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any, **__: Any
    ) -> None:
        if self.gpu.counts:
            self.steps.append("train" if trainer.training else "test" if trainer.testing else "validate")
        self.gpu.counts = batch_idx >= _PROOFS - 1

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = _start


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
        get_backend=lambda *_: "nccl",
    ):
        yield
