"""Numbers of the classes, such as how many training samples each has."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_counts(counts: Sequence[float] | Tensor) -> tuple[float, ...]:
    """The counts as a tuple of plain numbers; without any they are to be set before the training.

    Raises:
        ValueError: fewer than two classes, or a count that is not positive and finite.
    """
    numbers = tuple(counts.tolist() if isinstance(counts, Tensor) else counts)
    if len(numbers) == 1:
        raise ValueError(f"counts={numbers} must have one number for each of two classes or more.")
    for place, number in enumerate(numbers):
        if not 0 < number < float("inf"):
            raise ValueError(
                f"counts[{place}]={number} must be > 0 and finite: count the training samples of each class. For a "
                "class without samples, pass a small number such as 0.5, or drop the class."
            )
    return numbers


def by_class(values: Sequence[float], logits: Tensor, name: str) -> Tensor:
    """(C,) float64 values of the classes, on the CPU, for (N, C) logits.

    Move what you compute from them to the logits by ``.to(logits, non_blocking=True)``: a copy that does not block lets
    the host run ahead of a GPU.

    Raises:
        ValueError: the logits have another number of classes.
    """
    if not values:
        raise ValueError(
            f"{name}=() are to be set before the loss is used: pass one number for each class, or let "
            "SurveyData(ClassCounts(), sets='counts') count the training data."
        )
    if len(values) != logits.shape[1]:
        raise ValueError(
            f"{name} of {len(values)} classes do not fit logits of the shape {tuple(logits.shape)}. Pass one number "
            "for each class, in the order of the logits."
        )
    return torch.tensor(values, dtype=torch.float64)
