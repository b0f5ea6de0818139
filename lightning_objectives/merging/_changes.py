"""What merges of changes from a base share: their tensors, random drops of changes, and how these are added."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives._files.linear_merge import wide
from lightning_objectives.kinds import Merge
from lightning_objectives.merging.ties import ties_merge
from lightning_objectives.shapes import check_tensors


def base_and_weights(base: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The tensors that a merge computes with, in float32 or wider.

    Raises:
        ValueError: there is no network, or a shape is not that of the base.

    >>> base_and_weights(torch.zeros(1).half(), [torch.ones(1)])
    (tensor([0.]), [tensor([1.])])
    """
    if not weights:
        raise ValueError("weights=[] hold no network to merge: give one tensor for each.")
    check_tensors([base] * len(weights), weights=weights)
    return wide(base), [wide(weight) for weight in weights]


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


def with_changes(base: Tensor, opposites: Sequence[Tensor], *, scale: float, elect_signs: bool) -> Tensor:
    """The base with the sum of the changes; or, element by element, with the mean of those of the stronger sign.

    ``opposites`` are the base less each network, so that a change of 0 is +0, which leaves even a base of -0 as it is.

    >>> with_changes(torch.zeros(1), [torch.tensor([-3.0]), torch.tensor([1.0])], scale=1.0, elect_signs=True)
    tensor([3.])
    """
    if elect_signs:
        total = ties_merge(opposites, base=torch.zeros_like(base), density=1.0, scale=scale)
    else:
        total = scale * torch.stack([*opposites]).sum(0)
    return base.where(total == 0, base - total)
