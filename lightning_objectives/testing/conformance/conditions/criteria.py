"""The criteria that a user's step may call, and the batches that it may be given."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_objectives.data.with_index import with_index
from lightning_objectives.testing.conformance.case import CLASSES, Case, Classifier, Run
from lightning_objectives.testing.conformance.check import Trial, told
from lightning_objectives.testing.conformance.variants import loud, own, step_of, variant

_timm: Any = import_module("timm.loss")  # without annotations

# -- one criterion


def label_smoothing(trial: Trial) -> None:
    """``F.cross_entropy`` with ``label_smoothing``."""
    _criterion(trial, lambda: partial(F.cross_entropy, label_smoothing=0.1))


def class_weights(trial: Trial) -> None:
    """``nn.CrossEntropyLoss`` with a weight for each class."""
    _criterion(trial, lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5])))


def ignored_targets(trial: Trial) -> None:
    """``ignore_index``: some samples have no target."""
    _criterion(trial, lambda: partial(F.cross_entropy, ignore_index=0))


def soft_labels(trial: Trial) -> None:
    """``F.cross_entropy`` with class probabilities as targets."""
    _criterion(trial, lambda: F.cross_entropy, _soft)


def sums(trial: Trial) -> None:
    """``reduction="sum"``, divided by the user."""
    _criterion(trial, lambda: lambda logits, y: F.cross_entropy(logits, y, reduction="sum") / len(y))


def binary_cross_entropy(trial: Trial) -> None:
    """``F.binary_cross_entropy_with_logits``: a yes or no for each class."""
    _criterion(trial, lambda: F.binary_cross_entropy_with_logits, lambda y: F.one_hot(y, CLASSES).float())


def timm_label_smoothing(trial: Trial) -> None:
    """``timm.loss.LabelSmoothingCrossEntropy``, named by ``criterion="loss_fn"``."""
    _criterion(trial, lambda: _timm.LabelSmoothingCrossEntropy(0.1), options={"criterion": "loss_fn"})


def timm_soft_target(trial: Trial) -> None:
    """``timm.loss.SoftTargetCrossEntropy``, named by ``criterion="loss_fn"``."""
    _criterion(trial, _timm.SoftTargetCrossEntropy, _soft, options={"criterion": "loss_fn"})


def several_criteria(trial: Trial) -> None:
    """A step that calls three criteria, of which ``which=1`` is meant: the others keep their values.

    Where it matters which one is meant, and nobody says so, that is an error.
    """
    beside: list[float] = []

    class Several(Classifier):
        def _compared(self, batch: Any) -> Tensor:
            x, y = batch
            first = F.mse_loss(self.fc.weight, torch.zeros_like(self.fc.weight))
            value = F.cross_entropy(self(x), y)
            with torch.no_grad():
                metric = F.cross_entropy(torch.zeros(len(y), CLASSES), y)
            beside.extend([float(first.detach()), float(metric)])
            return value + 0.1 * first

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self._compared(batch)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val_loss", self._compared(batch))

    mine = own(trial, Several)
    mine.holds(options={"which": 1}, num_sanity_val_steps=1)
    first: list[list[float]] = []
    for callbacks in ([], told(mine.make(), {"which": 1})):
        beside.clear()
        mine.fit(callbacks, max_steps=1, val=[])
        first.append(beside[:2])
    trial.require(first[0] == first[1], f"the other criteria must give {first[0]}, not {first[1]}.")
    meant = mine.fit(told(mine.make(), {"which": 1}), num_sanity_val_steps=1)
    try:
        silent = mine.fit(num_sanity_val_steps=1)
    except ValueError as error:
        trial.require("which=" in str(error), f"the error must say that which= chooses, not {error!s}.")
    else:
        trial.require_same(meant, silent, "without which= it must be an error, or the same.")


# -- the batch


def a_batch_that_is_a_dict(trial: Trial) -> None:
    """``{"x": ..., "y": ...}``: the training is that of a tuple."""
    _same_batches(trial, lambda batch: (batch["x"], batch["y"]), lambda data: _Keyed(data), lambda loader: loader)


def a_batch_of_several_loaders(trial: Trial) -> None:
    """A list of two loaders, of which the step trains on the first: the training is that of this one alone."""
    _same_batches(trial, lambda batch: batch[0], lambda data: data, lambda loader: [loader, loader])


def a_combined_loader(trial: Trial) -> None:
    """``CombinedLoader`` of two loaders by name, of which the step trains on the first."""
    _same_batches(
        trial,
        lambda batch: batch["labelled"],
        lambda data: data,
        lambda loader: CombinedLoader({"more": loader, "labelled": loader}, "max_size_cycle"),
        options={"input": "labelled"},
    )


# -- how


def _soft(y: Tensor) -> Tensor:
    return F.one_hot(y, CLASSES) * 0.8 + 0.2 / CLASSES


def _criterion(
    trial: Trial,
    make: Callable[[], Any],
    target: Callable[[Tensor], Tensor] = lambda y: y,
    *,
    options: Mapping[str, Any] | None = None,
) -> None:
    """The laws of every training, of a classifier with another criterion."""

    class Compares(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.loss_fn = make()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss_fn(self(batch[0]), target(batch[1]))

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val_loss", self.loss_fn(self(batch[0]), target(batch[1])))

    own(trial, variant(Compares, loud)).holds(options=options, num_sanity_val_steps=1)


def _same_batches(
    trial: Trial,
    pair: Callable[[Any], Any],
    items: Callable[[Any], Any],
    loaders: Callable[[DataLoader[Any]], Any],
    *,
    options: Mapping[str, Any] | None = None,
) -> None:
    def methods(user: Any) -> dict[str, Any]:
        def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
            return step_of(user)(self, pair(batch), batch_idx)

        return {"training_step": training_step}

    def fit(callbacks: list[Any]) -> Run:
        train = loaders(_of_items(trial.case, callbacks, items))
        return trial.fit(told(callbacks, options), module=module, train=train)

    module = variant(trial.case.module, methods)
    plain = trial.plain(train=_of_items)
    idle = fit(list(trial.plug_in.idle(trial.case)))
    trial.require_same(plain, idle, "at zero strength it must be the training without it.")
    run = fit(trial.make())
    trial.require_to_act(plain, run)
    trial.require_same(trial.usual(train=_of_items), run, "the training must be that of a batch (x, y).")


def _of_items(case: Case, callbacks: list[Any], items: Callable[[Any], Any] = lambda data: data) -> DataLoader[Any]:
    asked = any("index" in getattr(callback, "signals", ()) for callback in callbacks)
    data = with_index(items(case.data())) if asked else items(case.data())
    # a generator of its own, since each loader draws a number when it is begun
    return DataLoader(data, batch_size=case.batch_size, generator=torch.Generator().manual_seed(0))


class _Keyed(Dataset[Any]):
    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        x, y = self.data[index]
        return {"x": x, "y": y}
