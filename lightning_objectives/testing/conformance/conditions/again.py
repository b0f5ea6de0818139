"""The same trainer, callbacks and module for a second time, in another order, copied and pickled."""

import copy
import io
import itertools
import pickle
import random
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_objectives.testing.conformance.case import Run
from lightning_objectives.testing.conformance.check import Trial, differing, shape_of
from lightning_objectives.testing.conformance.traces import flat, left_by

_SHORT: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 1}


def fit_twice_with_one_trainer(trial: Trial) -> None:
    """A second fit goes on where the first ended: its epochs are counted on, and nothing acts twice."""
    run = trial.fit(**_SHORT)
    run.trainer.fit_loop.max_epochs = 2
    before, first = shape_of(run.module), len(run.losses)
    run.trainer.fit(run.module, trial.case.loader_for(run.callbacks), trial.case.loader())
    trial.require_as_found(run.module, before)
    trial.require(len(run.losses) == 2 * first, f"two fits must train {2 * first} batches, not {len(run.losses)}.")


def fit_twice_with_two_trainers(trial: Trial) -> None:
    """One module trained twice, by two trainers with the same callbacks, is one trained by fresh callbacks."""
    reused = trial.fit(**_SHORT)
    fresh = copy.deepcopy(reused.module)
    again = trial.fit(reused.callbacks, module=reused.module, **_SHORT)
    trial.require_same(again, trial.fit(module=fresh, **_SHORT), "callbacks used before must be as good as new.")


def callbacks_reused(trial: Trial) -> None:
    """Callbacks that have trained one module train another as fresh ones do."""
    used = trial.fit(**_SHORT, seed=1).callbacks
    run = left_by(trial.fit(used, **_SHORT))
    fresh = left_by(trial.fit(**_SHORT))
    trial.require(not differing(run, fresh), f"callbacks used before must be as good as new: {differing(run, fresh)}.")


def permutations(trial: Trial) -> None:
    """The order of the callbacks does not matter, with a ModelCheckpoint and a callback of the user's among them."""
    first: dict[str, Any] = {}
    for order in _orders(len(trial.make()) + 2):
        made = [*trial.make(), ModelCheckpoint(filename="last"), _Users()]
        run = trial.fit([made[i] for i in order], **_SHORT, enable_checkpointing=True)
        left = flat({"weights": run.weights, "losses": run.losses, "file": _saved(run)["state_dict"]})
        first = first or left
        trial.require(
            not differing(first, left), f"in the order {order} other things are left: {differing(first, left)}"
        )


def copies_and_pickles(trial: Trial) -> None:
    """Callbacks and module are copied and pickled before, during and after a fit, and the copies train as new ones."""
    whole = trial.usual(**_SHORT)
    made = trial.make()
    for how in (copy.deepcopy, _pickled):
        run = trial.fit(how(made), **_SHORT)
        trial.require_same(whole, run, f"by {how.__name__}, before a fit, they must be as good as new.")
    probe = _Copies(made)
    trial.require_same(whole, trial.fit([*made, probe], **_SHORT), "what is copied must not be changed by it.")
    copied = [*probe.found, (copy.deepcopy(made), None), (_pickled(made), None)]
    for callbacks, module in copied:
        run = trial.fit(callbacks, **_SHORT)
        trial.require_same(whole, run, "copied in or after a fit, they must be as good as new.")
        if module is not None:
            _require_unpatched(trial, module)


def _require_unpatched(trial: Trial, module: Any) -> None:
    """What a copy has of its own and a new module has not is at most its class's method, bound to the copy."""
    plain = trial.case.module()
    trial.require(list(module.state_dict()) == list(plain.state_dict()), "a copy must have the keys of the module.")
    for name in vars(module).keys() - vars(plain).keys():
        method = vars(module)[name]
        if not callable(method):
            continue  # Lightning's own, such as the hyperparameters
        own = getattr(method, "__func__", None) is getattr(type(module), name, method)
        trial.require(own and method.__self__ is module, f"a copied module must be unpatched, but {name} is {method}.")


class _Users(L.Callback):
    """A callback of the user's, which keeps something of its own."""

    def state_dict(self) -> dict[str, Any]:
        return {"mine": 1}


class _Copies(L.Callback):
    """Copies callbacks and module in the middle of an epoch."""

    def __init__(self, callbacks: list[Any]) -> None:
        self.callbacks = callbacks
        self.found: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx != 1:
            return
        for how in (copy.deepcopy, _pickled):
            self.found.append((how(self.callbacks), how(pl_module)))


def _pickled(value: Any) -> Any:
    return pickle.load(io.BytesIO(pickle.dumps(value)))


def _saved(run: Run) -> Any:
    path = next(c for c in run.callbacks if isinstance(c, ModelCheckpoint)).best_model_path
    return torch.load(path, weights_only=True)


def _orders(number: int) -> list[tuple[int, ...]]:
    """All orders of up to four, six drawn ones of more."""
    if number <= 3:
        return list(itertools.permutations(range(number)))
    draw = random.Random(0)
    return [tuple(range(number)), *(tuple(draw.sample(range(number), number)) for _ in range(5))]
