"""What merges of changes from a base share: their tensors, random drops of changes, and how these are added."""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

from lightning_objectives._files.linear_merge import wide
from lightning_objectives.kinds import Merge
from lightning_objectives.shapes import check_tensors


def checked_base(base: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The base in float32 or wider, so that its difference to any of the weights is as wide.

    Raises:
        ValueError: there is no network, or a shape is not that of the base.

    >>> checked_base(torch.zeros(1).half(), [torch.ones(1).half()])
    tensor([0.])
    """
    if not weights:
        raise ValueError("weights=[] hold no network to merge: give one tensor for each.")
    check_tensors([base] * len(weights), weights=weights)
    return wide(base)


def needed(base: Tensor | None, merge: Merge) -> Tensor:
    """The base, if there is one.

    Raises:
        ValueError: there is none.

    >>> needed(torch.zeros(1), Merge())
    tensor([0.])
    """
    if base is None:
        raise ValueError(
            f"{type(merge).__name__} cannot merge without the base: give base=, the weights before the fine-tuning."
        )
    return base


def dropped(change: Tensor, drop: float | Tensor, generator: torch.Generator | None) -> Tensor:
    """A change without the elements that are drawn; the others grow, so that the expected change stays the same.

    >>> dropped(torch.ones(4), 0.0, None)
    tensor([1., 1., 1., 1.])
    """
    draws = torch.rand(change.shape, generator=generator).to(change.device, non_blocking=True)
    return torch.where(draws >= drop, change / (1 - drop), 0.0)


def with_changes(base: Tensor, opposites: Iterable[Tensor], *, scale: float, elect_signs: bool) -> Tensor:
    """The base with the sum of the changes; or, element by element, with the mean of those of the stronger sign.

    ``opposites`` are the base less each network, so that a change of 0 is +0, which leaves even a base of -0 as it is.
    They are taken one by one, so that a few tensors are in memory whatever the number of networks is.

    >>> with_changes(torch.zeros(1), iter([torch.tensor([-3.0]), torch.tensor([1.0])]), scale=1.0, elect_signs=True)
    tensor([3.])
    """
    total = scale * (_elected(opposites) if elect_signs else reduce(torch.add, opposites))
    return base.where(total == 0, base - total)


def _elected(changes: Iterable[Tensor]) -> Tensor:
    """The mean of the changes that have the sign of their sum, as TIES elects it; real and imaginary parts alone."""
    both: list[Tensor] = []
    for change in changes:
        parts = torch.view_as_real(change) if change.is_complex() else change
        total, *sides = both = both or [torch.zeros_like(parts) for _ in range(5)]
        total += parts
        for part, (side, count) in zip((parts, -parts), (sides[:2], sides[2:])):
            side += part.clamp_min(0)
            count += part > 0
    total, ups, up_count, downs, down_count = both
    # 0 where the sum is 0, and NaN where it is NaN.
    mean = torch.where(total > 0, ups / up_count, torch.where(total < 0, -downs / down_count, 0 * total))
    return torch.view_as_complex(mean) if change.is_complex() else mean
