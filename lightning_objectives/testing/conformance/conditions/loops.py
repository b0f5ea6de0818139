"""How long a training is, how often it is validated, and what else of Lightning's own stands beside it."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks as lightnings
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_objectives.testing.conformance.case import Case, Run
from lightning_objectives.testing.conformance.check import Trial, differing
from lightning_objectives.testing.conformance.traces import Raw, flat, left_by, parameters_of, states_of

FOUR = 4
"""Batches: one into the second epoch."""


def sanity_check(trial: Trial) -> None:
    """Batches validated before the first step change nothing: no weights, no metrics, nothing that is kept."""
    plain, idle = trial.plain(num_sanity_val_steps=2), trial.idle(num_sanity_val_steps=2)
    trial.require_same(plain, idle, "at zero strength it must be the training without it.")
    without, checked = (_left(trial, num_sanity_val_steps=number) for number in (0, 2))
    trial.require(not differing(without, checked), f"the sanity check changed {differing(without, checked)}.")


def fast_dev_run(trial: Trial) -> None:
    """Two batches of everything, and not a file left behind."""
    _, run = trial.holds(fast_dev_run=2)
    trial.require(len(run.losses) == 2, f"there must be two batches, not {len(run.losses)}.")
    for one in (trial.fit([], fast_dev_run=2), run):
        left = [path.name for path in Path(one.trainer.default_root_dir).rglob("*")]
        trial.require(not left, f"a trial run must leave no files, but there are {left}.")


def overfit_batches(trial: Trial) -> None:
    """The same two batches in each epoch, out of data that would be shuffled."""
    _, run = trial.holds(overfit_batches=2, train=_shuffled)
    trial.require(len(run.losses) == 4, f"there must be two epochs of two batches, not {len(run.losses)} batches.")


def max_steps(trial: Trial) -> None:
    """An end in the middle of an epoch, by a number of steps, among endless epochs or enough of them."""
    _, run = trial.holds(max_steps=FOUR, max_epochs=-1)
    trial.require(len(run.losses) == FOUR, f"there must be {FOUR} batches, not {len(run.losses)}.")
    trial.require_same(run, trial.fit(max_steps=FOUR, max_epochs=5), "endless epochs are as good as five.")


def max_epochs_endless(trial: Trial) -> None:
    """A training of no known end, which a callback stops in the middle of an epoch."""
    _, run = trial.holds(_Stop, max_epochs=-1)
    trial.require(len(run.losses) == FOUR, f"there must be {FOUR} batches, not {len(run.losses)}.")


def max_time(trial: Trial) -> None:
    """Lightning's Timer stops the training, by a clock that ticks once a batch."""
    _, run = trial.holds(_Clock, max_epochs=-1)
    trial.require(len(run.losses) == FOUR, f"there must be {FOUR} batches, not {len(run.losses)}.")


def without_validation(trial: Trial) -> None:
    """No batches are validated; the training is the one that is."""
    _same_training(trial, limit_val_batches=0)


def val_check_interval(trial: Trial) -> None:
    """A validation after each batch, from which the training goes on as if there had been none."""
    _same_training(trial, val_check_interval=1)


def check_val_every_n_epoch(trial: Trial) -> None:
    """A validation after every second epoch."""
    _same_training(trial, check_val_every_n_epoch=2)


def several_validation_loaders(trial: Trial) -> None:
    """Two loaders to validate, the same data twice: the same training, and the same metrics for both."""
    run = _same_training(trial, val=_two_quiet)
    metrics = {name: value for name, value in run.trainer.callback_metrics.items() if "dataloader_idx_0" in name}
    trial.require(metrics, "the metrics of several loaders must say whose they are.")
    for name, value in metrics.items():
        other = run.trainer.callback_metrics[name.replace("idx_0", "idx_1")]
        trial.require(torch.equal(value, other), f"{name} is {value} of one loader and {other} of its double.")


def unknown_length(trial: Trial) -> None:
    """Data of which nobody knows how many there are: the same training as on the same data of known length."""
    _, run = trial.holds(train=_of_unknown_length)
    trial.require_same(run, trial.usual(), "without a length, the same data must give the same training.")


def early_stopping(trial: Trial) -> None:
    """EarlyStopping ends the training by the metric of the weights that are validated, and then left in the module."""
    _, run = trial.holds(_early)
    trial.require(len(run.losses) == 3, f"the first epoch of three batches must be the last, of {len(run.losses)}.")
    monitored = float(run.trainer.callback_metrics["val_loss"])
    score = trial.case.trainer().validate(run.module, trial.case.loader(), verbose=False)[0]["val_loss"]
    trial.require(score == monitored, f"the metric was {monitored}, but that of the weights that are left is {score}.")


def beside_stochastic_weight_averaging(trial: Trial) -> None:
    """Lightning's StochasticWeightAveraging, with its extra epoch for BatchNorm, in front and behind."""
    _beside(trial, lambda: lightnings.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1), limit_train_batches=2)


def beside_weight_averaging(trial: Trial) -> None:
    """Lightning's WeightAveraging (where it has one), in front and behind."""
    made = getattr(lightnings, "WeightAveraging", L.Callback)
    _beside(trial, lambda: made())


def reload_dataloaders_every_n_epochs(trial: Trial) -> None:
    """The data made anew for each epoch are the same data."""
    _, run = trial.holds(train=_Data, val=[], reload_dataloaders_every_n_epochs=1)
    asked = run.trainer.datamodule.asked
    trial.require(asked == run.trainer.max_epochs, f"the data must be asked for in each epoch, not {asked} times.")
    trial.require_same(run, trial.usual(train=_Data, val=[]), "data made anew must give the same training.")


def barebones(trial: Trial) -> None:
    """A trainer that logs nothing, and trains the same."""
    _, run = trial.holds(barebones=True, log_every_n_steps=0)
    trial.require_same(run, trial.usual(), "without logging the training must be the same.")


def everything_logged(trial: Trial) -> None:
    """Values logged in every step, and all validation data: the training of one that logs and validates less."""
    _, run = trial.holds(log_every_n_steps=1, limit_val_batches=1.0)
    trial.require_same(run, trial.usual(), "logging more must give the same training.")


def _left(trial: Trial, **settings: Any) -> dict[str, Any]:
    """What is kept when the training begins, and all that it leaves."""
    began = _Began()
    left = left_by(trial.fit([*trial.make(), began], **settings))
    return {**left, **{f"at the start, {name}": value for name, value in began.states.items()}}


def _same_training(trial: Trial, **settings: Any) -> Run:
    """However it is validated, the weights go the same way, and each batch begins with those of the last step."""
    settings = {"val": _quiet, **settings}
    _, run = trial.holds(_Raw, **settings)
    usual = trial.usual(val=_quiet)
    trial.require_same(run, usual, f"{', '.join(settings)}: validation must not change what is trained.")
    return run


def _beside(trial: Trial, make: Callable[[], Any], **settings: Any) -> None:
    """Lightning's own averages leave the same weights whether they stand in front or behind, or it refuses them."""
    _, run = trial.holds(make, **settings)
    front = trial.fit([make(), *trial.make()], **settings)
    trial.require_same(run, front, "the order in the list must not matter.")


def _quiet(case: Case) -> DataLoader[Any]:
    """A loader that draws nothing from the global random stream, as others do each time that they are asked."""
    return case.loader(generator=torch.Generator())


def _two_quiet(case: Case) -> list[DataLoader[Any]]:
    return [_quiet(case), _quiet(case)]


def _shuffled(case: Case, callbacks: list[Any]) -> DataLoader[Any]:
    return DataLoader(case.loader_for(callbacks).dataset, batch_size=case.batch_size, shuffle=True)


def _of_unknown_length(case: Case, callbacks: list[Any]) -> DataLoader[Any]:
    return DataLoader(_Stream(case.loader_for(callbacks).dataset), batch_size=case.batch_size)


def _early() -> Any:
    return lightnings.EarlyStopping("val_loss", stopping_threshold=float("inf"))


def _require_none(other: list[str], sentence: str) -> None:
    if other:
        raise AssertionError(sentence)


class _Raw(Raw):
    """Requires that each batch begins with the weights of the last step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        other = differing(self.weights, parameters_of(pl_module))
        _require_none(other, f"batch {batch_idx} does not begin with the weights of the last step: {other}.")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        other = differing(self.weights, parameters_of(pl_module))
        _require_none(other, f"an epoch does not end with the weights of its last step: {other}.")


class _Began(L.Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.states = flat(states_of([c for c in trainer.callbacks if c is not self]), str(trainer.default_root_dir))


class _Stop(L.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = trainer.fit_loop.epoch_loop.total_batch_idx + 1 >= FOUR


class _Clock(lightnings.Timer):
    def __init__(self) -> None:
        super().__init__(timedelta(seconds=FOUR))
        self.ticks = 0

    def time_elapsed(self, stage: str = "train") -> float:
        return self.ticks

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self.ticks += 1
        super().on_train_batch_end(trainer, *args, **kwargs)


class _Stream(IterableDataset[Any]):
    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return (self.data[i] for i in range(len(self.data)))  # type: ignore[arg-type]  # it has a length, which is hidden


class _Data(L.LightningDataModule):
    def __init__(self, case: Case, callbacks: list[Any]) -> None:
        super().__init__()
        self.case = case
        self.data = case.loader_for(callbacks).dataset
        self.asked = 0

    def train_dataloader(self) -> Any:
        self.asked += 1
        return DataLoader(self.data, batch_size=self.case.batch_size, generator=torch.Generator())

    def val_dataloader(self) -> Any:
        return _quiet(self.case)
