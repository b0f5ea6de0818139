"""BatchNorm by parts of the batch."""

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_objectives.kinds import LayerPlace, Surgery


class GhostBatchNorm(Surgery):
    r"""Keeps the noise of small batches in large ones, by BatchNorm statistics of small parts of the batch.

    Each BatchNorm layer splits its N rows into :math:`\lceil N / B \rceil` parts, whose sizes differ by one at most and
    are 2 at least, and normalizes each by its own mean and variance. Each part updates the running statistics once.

    Args:
        size: :math:`B`, the rows of a part at most, at least 2; from the size of the batch on it is plain BatchNorm.

    Raises:
        ValueError: a size below 2; in the training, a layer that is no BatchNorm, or synchronizes it over processes.

    When to use: if a larger batch trains faster and generalizes worse. The paper does so together with a larger
    learning rate, and with as many updates as small batches get.
    Cost: a call of each layer for each part, and one copy of its output.
    Interactions: the more parts, the faster the running statistics forget: with the momentum m and k parts they keep
    :math:`(1 - m)^k` of their old value in each step.

    Example:
        >>> layer = nn.BatchNorm1d(1)
        >>> inputs = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> GhostBatchNorm(size=2).call(layer, LayerPlace(), layer.forward, inputs).detach().round().flatten()
        tensor([-1.,  1., -1.,  1.])

    Paper: Hoffer, Hubara and Soudry, Train Longer, Generalize Better, NeurIPS 2017, algorithm 1,
    https://arxiv.org/abs/1705.08741. The algorithm's number was not checked at the source.
    """

    changes = (_BatchNorm,)
    by_process = "each process normalizes parts of its own rows"
    example = {"size": 2}  # noqa: RUF012  # a ClassVar of the base

    def __init__(self, *, size: int = 128) -> None:
        if size < 2:
            raise ValueError(f"size={size} must be >= 2: one row has no variance.")
        self.size = size

    def check(self, layer: nn.Module, count: int) -> None:
        """Refuse what is no BatchNorm of this process alone."""
        if isinstance(layer, nn.SyncBatchNorm):
            raise ValueError("SyncBatchNorm joins the batches of all processes, the opposite. Use one of the two.")
        if not isinstance(layer, _BatchNorm):
            raise ValueError(f"{type(layer).__name__} is no BatchNorm. Leave out layers=, or name BatchNorm layers.")

    def call(self, layer: nn.Module, place: LayerPlace, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Normalize each part by itself."""
        inputs: Tensor = args[0] if args else kwargs["input"]
        parts = min(ceil(len(inputs) / self.size), len(inputs) // 2)  # one row has no variance
        if parts < 2:
            return inner(inputs)
        return torch.cat([inner(part) for part in inputs.tensor_split(parts)])
