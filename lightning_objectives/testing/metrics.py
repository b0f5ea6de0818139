"""Laws of the metrics, whose contract is torchmetrics' own."""

import copy
import inspect
import pickle
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.signals import example_signals, take_rows

FIRST, SECOND, ALL = torch.arange(0, 9), torch.arange(9, 24), torch.arange(24)
"""Batches of unequal size, so that a mean of means is seen."""


def _signals(metric: Metric, rows: Tensor) -> dict[str, Any]:
    signals = take_rows(example_signals(rows=len(ALL)), rows)
    known = {**signals, "preds": signals["logits"]}  # torchmetrics' own name
    names = inspect.signature(metric.update).parameters
    require(set(names) <= known.keys(), metric, f"update must take preds, target or other signals, not {tuple(names)}.")
    given = {name: known[name] for name in names}
    return {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()}


def _seen(metric: Metric, *batches: Tensor) -> Metric:
    metric = copy.deepcopy(metric)
    for rows in batches:
        metric.update(**_signals(metric, rows))
    return metric


def a_copy_goes_on(metric: Metric) -> None:
    """A pickle and a deep copy made between two batches give the same value in the end."""
    half, value = _seen(metric, FIRST), _seen(metric, FIRST, SECOND).compute()
    for how, other in {"a pickle": pickle.loads(pickle.dumps(half)), "a deep copy": copy.deepcopy(half)}.items():
        require(close(_seen(other, SECOND).compute(), value), metric, f"{how} must go on where it was made.")


def two_batches_are_one(metric: Metric) -> None:
    """The value does not depend on how the samples are cut into batches."""
    same = close(_seen(metric, FIRST, SECOND).compute(), _seen(metric, ALL).compute())
    require(same, metric, "two batches must give the value of the joined batch: keep sums and counts, no means.")


def two_ranks_are_one(metric: Metric) -> None:
    """The states of two processes, reduced as declared, give the value of the joined batch."""
    declared = metric.full_state_update is False
    require(declared, metric, "it must declare full_state_update = False, so that ranks merge and forward runs once.")
    here, there = _seen(metric, FIRST), _seen(metric, SECOND)
    here.merge_state(there)
    same = close(here.compute(), _seen(metric, ALL).compute())
    require(same, metric, "two ranks must give the value of the joined batch: look at dist_reduce_fx.")


def reset_forgets(metric: Metric) -> None:
    """After ``reset`` it is as new."""
    used = _seen(metric, FIRST)
    used.reset()
    same = close(_seen(used, SECOND).compute(), _seen(metric, SECOND).compute())
    require(same, metric, "reset must forget all that was seen: make what it remembers a state.")


def tensor_states_do_not_grow(metric: Metric) -> None:
    """Constant memory, where the states are tensors; a metric that keeps the samples declares lists."""
    one, two = _seen(metric, FIRST), _seen(metric, FIRST, SECOND)
    for name, value in one.metric_state.items():
        same = getattr(value, "shape", None) == getattr(two.metric_state[name], "shape", None)  # a list has none
        require(same, metric, f"the state {name!r} grows with the samples: declare it as a list.")
