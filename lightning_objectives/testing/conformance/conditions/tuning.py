"""Lightning's finders of the learning rate and of the batch size, called and as callbacks.

While they search, Lightning takes the callbacks of the trainer away, but calls the patched step: the losses of the
search contain what acts in the step, and nothing of what acts by hooks (averages, merges, transformed gradients).
"""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from lightning_objectives.testing.conformance.case import Run
from lightning_objectives.testing.conformance.check import Trial, differing, shape_of
from lightning_objectives.testing.conformance.traces import flat

_SEARCH = {"min_lr": 1e-4, "max_lr": 1e-1, "num_training": 3, "early_stop_threshold": None, "update_attr": False}


def lr_find(trial: Trial) -> None:
    """``Tuner.lr_find`` before a fit: all is as before, and its losses contain the step's objective."""
    callbacks = trial.make()
    module = _made(trial)
    before, shape = flat(module.state_dict()), shape_of(module)
    found = _searched(trial, callbacks, module)
    trial.require_as_found(module, shape)
    trial.require(not differing(before, dict(module.state_dict())), "the search must leave the weights as they were.")
    idle = _searched(trial, list(trial.plug_in.idle(trial.case)), _made(trial))
    plain = _searched(trial, [], _made(trial))
    trial.require(idle == plain, f"at zero strength the search must see the losses {plain}, not {idle}.")
    if trial.plug_in.leaves_training_alone(trial.case):
        trial.require(found == plain, f"the search must see the losses {plain}, not {found}.")
    else:
        again = _searched(trial, trial.make(), _made(trial))
        trial.require(found == again, f"two equal searches must be equal, not {found} and {again}.")
    trial.require_same(trial.fit(callbacks, module=module), trial.fit(), "a fit after a search must be one without.")


def lr_finder_callback(trial: Trial) -> None:
    """``LearningRateFinder`` in the list: the training after the search is that with fresh callbacks."""
    _same_after(trial, lambda: _Finder(**_SEARCH))


def scale_batch_size(trial: Trial) -> None:
    """``Tuner.scale_batch_size`` before a fit: module and callbacks are as before."""
    callbacks, module = trial.make(), _made(trial, _sized)
    before, shape = flat(module.state_dict()), shape_of(module)
    tuner = Tuner(trial.case.trainer(*callbacks))
    tuner.scale_batch_size(module, trial.case.loader_for(callbacks), steps_per_trial=1, max_trials=2)
    trial.require_as_found(module, shape)
    trial.require(not differing(before, dict(module.state_dict())), "the search must leave the weights as they were.")
    trial.require_same(trial.fit(callbacks, module=module), trial.fit(), "a fit after a search must be one without.")


def batch_size_finder_callback(trial: Trial) -> None:
    """``BatchSizeFinder`` in the list: the training after the search is that of the module before it."""
    _same_after(trial, lambda: BatchSizeFinder(steps_per_trial=1, max_trials=1, init_val=8), module=_sized)


class _Finder(LearningRateFinder):
    """Searches, and takes no rate: ``update_attr`` is not a setting of the callback."""

    def __init__(self, *, min_lr: float, max_lr: float, num_training: int, **_: Any) -> None:
        super().__init__(min_lr, max_lr, num_training, early_stop_threshold=None, update_attr=False)


def _made(trial: Trial, variant: Callable[[Any], Any] | None = None) -> Any:
    torch.manual_seed(0)
    module = trial.case.module()
    return module if variant is None else variant(module)


def _sized(module: Any) -> Any:
    module.batch_size = 8
    return module


def _searched(trial: Trial, callbacks: list[Any], module: Any) -> list[float]:
    trainer = trial.case.trainer(*callbacks)
    L.seed_everything(0, verbose=False)
    finder = Tuner(trainer).lr_find(module, trial.case.loader_for(callbacks), **_SEARCH)
    assert finder is not None
    return [float(loss) for loss in finder.results["loss"]]


def _same_after(trial: Trial, finder: Callable[[], Any], module: Callable[[Any], Any] | None = None) -> None:
    """The search draws random numbers, as it does without us; from the state of the training on all is the same."""

    def run(callbacks: list[Any], *beside: Any) -> Run:
        return trial.fit([*callbacks, *beside, _Seeds()], module=lambda: _made(trial, module))

    found, fresh = run(trial.make(), finder()), run(trial.make())
    trial.require_same(found, fresh, "a training after a search must be one without.")
    plain, idle = run([], finder()), run(list(trial.plug_in.idle(trial.case)), finder())
    trial.require_same(plain, idle, "at zero strength it must be the training without it.")


class _Seeds(L.Callback):
    """Begins the random stream anew where the training starts, after the search."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        torch.manual_seed(trainer.current_epoch)
