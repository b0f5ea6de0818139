"""Pairs of hidden layers of a student and a teacher."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def check_pairs(hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor]) -> None:
    """Refuse layers of a student and a teacher that do not belong together.

    Raises:
        ValueError: with the numbers or the shapes.
    """
    if len(hidden) != len(teacher_hidden) or not hidden:
        raise ValueError(
            f"{len(hidden)} layers of the student cannot be compared with {len(teacher_hidden)} of the teacher. Name "
            "one layer of the teacher for each of the student, by layers= and teacher_layers=."
        )
    for number, (own, other) in enumerate(zip(hidden, teacher_hidden)):
        if own.dim() != other.dim() or own.dim() < 2 or len(own) != len(other):
            raise ValueError(
                f"The layers {number} have the shapes {tuple(own.shape)} and {tuple(other.shape)}, but both must be "
                "(N, channels, ...) with the same N and as many dimensions. Name layers of the same kind."
            )


def of_one_size(hidden: Tensor, teacher_hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps with the smaller of their sizes in each dimension of space, by adaptive mean pooling.

    Raises:
        ValueError: maps of different sizes with more than three dimensions of space.
    """
    size = [min(pair) for pair in zip(hidden.shape[2:], teacher_hidden.shape[2:])]
    pooled = []
    for maps in (hidden, teacher_hidden):
        if [*maps.shape[2:]] != size:
            if len(size) > 3:
                raise ValueError(
                    f"Maps of the shapes {tuple(hidden.shape)} and {tuple(teacher_hidden.shape)} cannot be pooled to "
                    "one size, which works for up to three dimensions of space. Name layers of one size."
                )
            pools: Any = F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d
            maps = pools[len(size) - 1](maps, size)
        pooled.append(maps)
    return pooled[0], pooled[1]
