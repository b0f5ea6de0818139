"""Laws of the batch transforms."""

from typing import Any

import torch

from lightning_objectives.kinds import BatchTransform
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.signals import call, example_signals


def _run(method: BatchTransform) -> Any:
    return call(method, example_signals())


def the_shape_of_the_inputs_is_kept(method: BatchTransform) -> None:
    """The inputs keep their shape and their type; a method that changes their size keeps rows and channels."""
    before, after = example_signals()["inputs"], _run(method)[0]
    dims = before.dim() if method.keeps_size else 2
    same = after.shape[:dims] == before.shape[:dims] and after.dim() == before.dim() and after.dtype == before.dtype
    require(
        same, method, f"the inputs must keep {tuple(before.shape)} {before.dtype}, not {after.shape} {after.dtype}."
    )


def the_labels_are_mixed_in_shares(method: BatchTransform) -> None:
    """``index`` (N, K) counts rows of the batch; ``weight`` (N, K) is >= 0 and sums to 1 along K."""
    _, index, weight = _run(method)
    rows = len(example_signals()["inputs"])
    form = index.ndim == 2 and len(index) == rows and index.shape == weight.shape and index.dtype == torch.long
    require(form, method, f"index and weight must be ({rows}, K), int64 and float, not {index.shape}, {weight.shape}.")
    require(((index >= 0) & (index < rows)).all(), method, f"index must count the {rows} rows of the batch.")
    shares = (weight >= 0).all() and close(weight.sum(1), torch.ones(rows))
    require(shares, method, f"the weights of a row must be >= 0 and sum to 1, not {weight.tolist()}.")


def the_generator_alone_decides(method: BatchTransform) -> None:
    """All draws come from the generator: equal generators give equal batches."""
    require(close(_run(method), _run(method), 0), method, "equal generators must give equal batches.")
