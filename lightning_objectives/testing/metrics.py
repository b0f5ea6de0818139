"""Laws of the metrics, which keep the contract of torchmetrics."""

import copy
import inspect
import pickle
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.shapes import refuses, wrong_signals
from lightning_objectives.testing.signals import example_signals, take_rows

FIRST, SECOND, ALL = torch.arange(0, 9), torch.arange(9, 24), torch.arange(24)
"""Batches of unequal size, so that a mean of means gives another value."""


def _signals(metric: Metric, rows: Tensor) -> dict[str, Any]:
    signals = take_rows(example_signals(rows=len(ALL)), rows)
    signals["preds"] = signals["logits"]  # the name in torchmetrics
    signals["loader"] = rows % 2
    names = inspect.signature(metric.update).parameters
    named = set(names) <= signals.keys()
    require(named, metric, f"update must take preds, target or other signals, not {tuple(names)}.")
    values = ((name, signals[name]) for name in names)
    return {name: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for name, v in values}


def _updated(metric: Metric, *batches: Tensor) -> Metric:
    metric = copy.deepcopy(metric)
    for rows in batches:
        metric.update(**_signals(metric, rows))
    return metric


def a_copy_goes_on(metric: Metric) -> None:
    """A pickle and a deep copy between two batches give the same value in the end."""
    half, value = _updated(metric, FIRST), _updated(metric, FIRST, SECOND).compute()
    for how, other in {"a pickle": pickle.loads(pickle.dumps(half)), "a deep copy": copy.deepcopy(half)}.items():
        require(close(_updated(other, SECOND).compute(), value), metric, f"{how} must go on as the metric itself does.")


def two_batches_are_one(metric: Metric) -> None:
    """The value does not depend on how the samples are split into batches."""
    same = close(_updated(metric, FIRST, SECOND).compute(), _updated(metric, ALL).compute())
    require(same, metric, "two batches must give the value of the joined batch: keep sums and counts, no means.")


def two_ranks_are_one(metric: Metric) -> None:
    """The states of two processes, reduced as the metric declares, give the value of the joined batch."""
    declared = metric.full_state_update is False
    require(declared, metric, "it must declare full_state_update = False, so that ranks merge and forward runs once.")
    first, second = _updated(metric, FIRST), _updated(metric, SECOND)
    first.merge_state(second)
    same = close(first.compute(), _updated(metric, ALL).compute())
    require(same, metric, "two ranks must give the value of the joined batch: look at dist_reduce_fx.")


def reset_forgets(metric: Metric) -> None:
    """After ``reset`` a metric behaves like a new one."""
    used = _updated(metric, FIRST)
    used.reset()
    same = close(_updated(used, SECOND).compute(), _updated(metric, SECOND).compute())
    require(same, metric, "reset must forget all earlier batches: keep all memory in states.")


def tensor_states_do_not_grow(metric: Metric) -> None:
    """States that are tensors need constant memory; a metric that keeps the samples declares lists."""
    one, two = _updated(metric, FIRST), _updated(metric, FIRST, SECOND)
    for name, value in one.metric_state.items():
        same = getattr(value, "shape", None) == getattr(two.metric_state[name], "shape", None)  # a list has none
        require(same, metric, f"the state {name!r} grows with the samples: declare it as a list.")


def tensors_that_do_not_fit_each_other_are_refused(metric: Metric) -> None:
    """Tensors of other dimensions, or of different lengths, are a ValueError that shows a shape."""
    signals = {"logits" if name == "preds" else name: value for name, value in _signals(metric, ALL).items()}
    for name, value in wrong_signals(signals, list(signals)) if len(signals) > 1 else ():
        wrong = {**signals, name: value}
        shapes = [str(tuple(tensor.shape)) for tensor in wrong.values() if isinstance(tensor, Tensor)]
        what = f"{name} of the shape {tuple(value.shape)}, {value.dtype},"
        refuses(partial(copy.deepcopy(metric).update, *wrong.values()), metric, what, *shapes)
