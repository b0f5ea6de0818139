"""Laws of the surveys."""

import copy

import torch
from torch import Tensor

from lightning_objectives.kinds import Survey
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.signals import call, example_signals, require_grad, take_rows

ROWS = 6


def _sums(method: Survey, rows: Tensor | None = None) -> dict[str, Tensor]:
    signals = example_signals(rows=ROWS)
    sums: dict[str, Tensor] = call(method, signals if rows is None else take_rows(signals, rows))
    return sums


def the_sums_are_tensors_without_gradients(method: Survey) -> None:
    """The sums are finite tensors by name, which need no gradient even if the signals do."""
    signals = require_grad(example_signals(rows=ROWS), "logits", "features", "inputs", "losses")
    sums = call(method, signals)
    good = isinstance(sums, dict) and sums and all(isinstance(value, Tensor) for value in sums.values())
    require(good, method, f"it must return a dictionary of tensors, not {type(sums).__name__}.")
    for name, value in sums.items():
        require(not value.requires_grad, method, f"the sum {name} must need no gradient: detach it.")
        require(bool(value.isfinite().all()), method, f"the sum {name} must be finite.")


def two_batches_are_one(method: Survey) -> None:
    """The sums of two batches, of other sizes, add up to those of the joined batch, in the same names and shapes."""
    whole, first, second = _sums(method), _sums(method, torch.arange(4)), _sums(method, torch.arange(4, ROWS))
    same = [{name: value.shape for name, value in sums.items()} for sums in (whole, first, second)]
    require(same[0] == same[1] == same[2], method, f"names and shapes must not depend on the rows, but are {same}.")
    joined = {name: first[name] + second[name] for name in first}
    require(close(joined, whole, 1e-9), method, "the sums of two batches must add up to those of the joined batch.")


def the_order_of_the_rows_means_nothing(method: Survey) -> None:
    """A permutation of the rows leaves the sums as they are."""
    same = close(_sums(method, torch.arange(ROWS).flip(0)), _sums(method), 1e-9)
    require(same, method, "the order of the rows must not matter.")


def the_result_is_made_of_the_sums_alone(method: Survey) -> None:
    """``result`` returns tensors by name, the same each time, and writes to nothing."""
    sums = _sums(method)
    before = copy.deepcopy(sums)
    results = [method.result(sums, ROWS) for _ in range(2)]
    good = all(isinstance(value, Tensor) for value in results[0].values()) and results[0]
    require(good, method, "its result must be a dictionary of tensors.")
    require(close(sums, before, 0), method, "result must not write to the sums.")
    require(close(results[0], results[1], 0), method, "result must give the same each time.")
