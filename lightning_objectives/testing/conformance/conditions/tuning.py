"""Lightning's finders of the learning rate and of the batch size, called and as callbacks.

While they search, Lightning takes the callbacks of the trainer away, but calls the patched step: the losses of the
search contain what acts in the step, and nothing of what acts by hooks (averages, merges, transformed gradients).
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner
from torch.utils.data import DataLoader

from lightning_objectives.testing.conformance.case import Case, Run
from lightning_objectives.testing.conformance.check import Trial, differing, shape_of
from lightning_objectives.testing.conformance.traces import flat

_SEARCH: dict[str, Any] = {"min_lr": 1e-4, "max_lr": 1e-1, "num_training": 3, "early_stop_threshold": None}


def lr_find(trial: Trial) -> None:
    """``Tuner.lr_find`` before a fit: all is as before, and its losses contain what acts in the step."""
    callbacks = trial.make()
    module = _made(trial)
    before, shape = flat(module.state_dict()), shape_of(module)
    found = _searched(trial, callbacks, module)
    trial.require_as_found(module, shape)
    trial.require(not differing(before, dict(module.state_dict())), "the search must leave the weights as they were.")
    idle = _searched(trial, list(trial.plug_in.idle(trial.case)), _made(trial))
    plain = trial.once(lambda: _searched(trial, [], _made(trial)), "searched")
    trial.require(idle == plain, f"at zero strength the search must see the losses {plain}, not {idle}.")
    if trial.plug_in.leaves_training_alone(trial.case):
        trial.require(found == plain, f"the search must see the losses {plain}, not {found}.")
    else:
        again = _searched(trial, trial.make(), _made(trial))
        trial.require(found == again, f"two equal searches must be equal, not {found} and {again}.")
    trial.require_same(trial.fit(callbacks, module=module), trial.usual(), "a fit after a search must be one without.")


def lr_finder_callback(trial: Trial) -> None:
    """``LearningRateFinder`` in the list: the training after the search is that with fresh callbacks."""
    found = _trained(trial, trial.make(), _finder())
    trial.require_same(found, trial.usual(_Seeds, **_TRAINED), "a training after a search must be one without.")
    idle = _trained(trial, list(trial.plug_in.idle(trial.case)), _finder())
    plain = trial.plain(_finder, _Seeds, **_TRAINED)
    trial.require_same(plain, idle, "at zero strength it must be the plain training.")


def scale_batch_size(trial: Trial) -> None:
    """``Tuner.scale_batch_size`` before a fit: module and callbacks are as before."""
    callbacks, module = trial.make(), _made(trial)
    before, shape = flat(module.state_dict()), shape_of(module)
    tuner = Tuner(trial.case.trainer(*callbacks))
    tuner.scale_batch_size(module, datamodule=_Data(trial.case, callbacks), steps_per_trial=1, max_trials=1, init_val=4)
    trial.require_as_found(module, shape)
    trial.require(not differing(before, dict(module.state_dict())), "the search must leave the weights as they were.")
    trial.require_same(trial.fit(callbacks, module=module), trial.usual(), "a fit after a search must be one without.")


def batch_size_finder_callback(trial: Trial) -> None:
    """``BatchSizeFinder`` in the list: the training after the search is that of the module before it."""
    finder = BatchSizeFinder(steps_per_trial=1, max_trials=1, init_val=8)
    found = _trained(trial, trial.make(), finder)
    trial.require_same(found, trial.usual(_Seeds, **_TRAINED), "a training after a search must be one without.")


def _finder() -> LearningRateFinder:
    low, high, steps, _ = _SEARCH.values()
    return LearningRateFinder(low, high, num_training_steps=steps, early_stop_threshold=None, update_attr=False)


def _made(trial: Trial) -> Any:
    torch.manual_seed(0)
    return trial.case.module()


def _searched(trial: Trial, callbacks: list[Any], module: Any) -> list[float]:
    trainer = trial.case.trainer(*callbacks)
    L.seed_everything(0, verbose=False)
    finder = Tuner(trainer).lr_find(module, trial.case.loader_for(callbacks), update_attr=False, **_SEARCH)
    assert finder is not None
    return [float(loss) for loss in finder.results["loss"]]


def _trained(trial: Trial, callbacks: list[Any], *beside: Any) -> Run:
    """The search draws random numbers, with or without us: each epoch draws from a state of its own."""
    return trial.fit([*callbacks, *beside, _Seeds()], **_TRAINED)


class _Data(L.LightningDataModule):
    """The data of the case in batches of a size that can be searched for."""

    def __init__(self, case: Case, callbacks: list[Any]) -> None:
        super().__init__()
        self.data = case.loader_for(callbacks).dataset
        self.batch_size = case.batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=self.batch_size)


class _Seeds(L.Callback):
    """Begins the random stream anew where the training starts, after the search."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        torch.manual_seed(trainer.current_epoch)


_TRAINED: dict[str, Any] = {"train": _Data, "val": []}
