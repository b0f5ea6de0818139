"""What merges of changes from a base share: the tensors that a function gets, and the base that a class needs."""

from collections.abc import Sequence

from torch import Tensor

from lightning_objectives._files.linear_merge import wide
from lightning_objectives.kinds import Merge
from lightning_objectives.shapes import check_tensors


def base_and_weights(base: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The tensors that a merge computes with, in float32 or wider.

    Raises:
        ValueError: there is no network, or a shape is not that of the base.

    >>> import torch
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

    >>> import torch
    >>> needed(torch.zeros(1), Merge())
    tensor([0.])
    """
    if base is None:
        raise ValueError(
            f"{type(merge).__name__} cannot merge without the base: give base=, the weights before the fine-tuning."
        )
    return base
