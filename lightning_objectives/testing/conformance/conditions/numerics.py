"""Determinism, random draws, and numbers at the edge."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from lightning_objectives.testing.conformance.case import Run
from lightning_objectives.testing.conformance.check import REFUSALS, Trial
from lightning_objectives.testing.conformance.variants import (
    Probe,
    frozen_norms,
    sgd,
    step_of,
    variant,
)


def deterministic(trial: Trial) -> None:
    """``deterministic=True``: nothing that it forbids is used, and on the CPU the training is the usual one."""
    with _as_before():
        _same_with(trial, deterministic=True)


def detect_anomaly(trial: Trial) -> None:
    """``detect_anomaly=True``: the training is the usual one."""
    _same_with(trial, detect_anomaly=True)


def random_draws(trial: Trial) -> None:
    """The global random streams of torch, numpy and python are where they are without the plug-in, at every batch.

    At zero strength always; at work unless a callback says that it draws from them.
    """

    def streams(callbacks: list[Any]) -> list[Any]:
        probe = Probe(_streams, _streams)
        trial.fit([*callbacks, probe])
        return probe.starts + probe.ends

    plain = trial.once(lambda: streams([]), "streams")
    idle, run = streams(list(trial.plug_in.idle(trial.case))), streams(trial.make())
    trial.require(idle == plain, "at zero strength nothing may be drawn from the global random streams.")
    draws = any(callback.draws for callback in trial.make())
    moved = next((n for n, (a, b) in enumerate(zip(plain, run)) if a != b), None)
    trial.require(draws or moved is None, "it draws from a global random stream, and does not say so (`draws`).")


def great_logits(trial: Trial) -> None:
    """Logits of about ten thousand: losses and weights stay finite. Where all is saturated, losses may be the same."""

    def methods(user: Any) -> dict[str, Any]:
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return 1e4 * user.forward(self, *args, **kwargs)

        return {"forward": forward, **sgd(lr=1e-10)(user)}

    _, run = trial.holds(module=variant(trial.case.module, methods), acts=False)
    _require_finite_losses(trial, run)


def a_batch_of_one(trial: Trial) -> None:
    """Batches of one sample: all stays finite. What compares the samples of a batch may have nothing to do."""
    module = frozen_norms(trial.case.module)
    one = replace(trial, case=replace(trial.case, batch_size=1))
    _, run = one.holds(module=module, acts=False, limit_train_batches=4, limit_val_batches=4)
    _require_finite_losses(trial, run)


def equal_losses(trial: Trial) -> None:
    """The same sample again and again: all stays finite. What compares samples may have nothing to do."""
    data = trial.case.data
    same = replace(trial, case=replace(trial.case, data=lambda: _Repeated(data())))
    _, run = same.holds(module=variant(trial.case.module, prepare=_no_dropout), acts=False)
    _require_finite_losses(trial, run)


def a_sample_that_is_not_a_number(trial: Trial) -> None:
    """A NaN in one sample ruins the training; the next one with the same callbacks is sound."""
    module = variant(trial.case.module, _poisoned)
    callbacks = trial.make()
    try:
        trial.fit(callbacks, module=module, max_epochs=1, val=[])
    except REFUSALS as error:
        trial.require("finite" in str(error).lower(), f"an error must say what is not finite, not {str(error)!r}.")
    again, fresh = trial.fit(callbacks, val=[]), trial.fit(val=[])
    trial.require_same(again, fresh, "after a training that came to nothing the next must be that of new callbacks.")
    trial.require_finite(again)


# -- how


def _same_with(trial: Trial, **settings: Any) -> None:
    plain, usual = trial.plain(), trial.usual()
    trial.require_same(plain, trial.idle(**settings), "at zero strength it must be the plain training.")
    trial.require_same(usual, trial.fit(**settings), f"with {settings} the training must be the usual one.")


@contextmanager
def _as_before() -> Iterator[None]:
    """Lightning leaves the switch of torch as it set it."""
    was = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)


def _streams(module: Any) -> Any:
    _, keys, position, *_ = np.random.get_state(legacy=True)
    return torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), position, random.getstate()


def _require_finite_losses(trial: Trial, run: Run) -> None:
    trial.require(all(torch.tensor(run.losses).isfinite()), f"the losses must be finite, but are {run.losses}.")


def _no_dropout(module: Any) -> None:
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0


def _poisoned(user: Any) -> dict[str, Any]:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            inputs = batch[0].clone()
            inputs[0] = float("nan")
            batch = [inputs, *batch[1:]]
        return step_of(user)(self, batch, batch_idx)

    return {"training_step": training_step}


class _Repeated(Dataset[Any]):
    """The first sample of a data set, as often as there are samples."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[0]
