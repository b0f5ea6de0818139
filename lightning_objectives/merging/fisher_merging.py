"""Fisher merging: a mean of networks in which each weight counts by its Fisher information."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_objectives.kinds import Merge, MergePiece
from lightning_objectives.shapes import check_tensors


def fisher_merge(
    weights: Sequence[Tensor],
    *,
    importance: Sequence[Tensor],
    shares: Sequence[float] | None = None,
    floor: float = 1e-6,
    normalize: bool = True,
) -> Tensor:
    r"""Compute a mean of weights in which each counts by its importance to its network.

    .. math::
        \theta_j = \frac{\sum_k \lambda_k F_{k,j} \theta_{k,j}}{\sum_k \lambda_k F_{k,j}}

    Args:
        weights: K tensors :math:`\theta_k` of one shape, in any float or complex type.
        importance: K real tensors :math:`F_k \ge 0` of the same shape: the diagonal of the Fisher information,
            :math:`\mathbb{E}_x \mathbb{E}_{y \sim p(y | x)} (\nabla \log p(y | x))^2`, squared for each sample and then
            averaged. The square of a batch's gradient is another quantity.
        shares: K numbers :math:`\lambda_k > 0`; None for equal ones.
        floor: the least importance of a weight, so that a weight that is important to no network is a plain mean. It is
            compared with the importance as it is, before the norm. If most of a network's is below, you get a warning.
        normalize: divide the importance of each network by its norm over the whole network, so that a network whose
            gradients are large has no larger say.

    Returns:
        a tensor of the same shape.

    Raises:
        ValueError: the shapes or the numbers of tensors differ; an importance is negative, not finite, or 0 everywhere
            while its norm is needed; a share or the floor is out of range.

    Example:
        >>> weights = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 0.0, 1.0])]
        >>> importance = [torch.tensor([4.0, 0.0, 3.0]), torch.tensor([1.0, 2.0, 2.0])]
        >>> fisher_merge(weights, importance=importance, normalize=False)[[0, 2]]  # (4·1 + 1·3) / 5, (3·3 + 2·1) / 5
        tensor([1.4000, 2.2000])

    Paper: Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022, equation 4,
    https://arxiv.org/abs/2111.09832.

    Differs from the paper's code: the code raises only the first network's importance to the floor if it favours that
    network, and does not say what a network without any importance gives.
    """
    _check(shares, floor)
    if not weights:
        raise ValueError("weights=[] hold no network to merge: give one tensor for each.")
    check_tensors([weights[0]] * len(weights), weights=weights)
    check_tensors(weights, importance=importance)
    wide = [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (*weights, *importance)]
    piece = MergePiece(wide[: len(weights)], importance=wide[len(weights) :])
    return _merged(piece.weights, wide[len(weights) :], _factors([piece], shares, floor, normalize), floor)


def _check(shares: Sequence[float] | None, floor: float) -> None:
    if shares is not None and not all(0 < share < math.inf for share in shares):
        raise ValueError(
            f"shares={list(shares)} must be finite and > 0, one for each file: leave out a file of share 0."
        )
    if not 0 < floor < math.inf:
        raise ValueError(f"floor={floor} must be finite and > 0: without it, 0 / 0 is the mean of unimportant weights.")


def _factors(
    network: Iterable[MergePiece], shares: Sequence[float] | None, floor: float, normalize: bool
) -> list[float]:
    """The factor of each network's importance."""
    squares: dict[int, float] = defaultdict(float)
    positive: dict[int, int] = defaultdict(int)
    low: dict[int, int] = defaultdict(int)
    for piece in network:
        for place, values in enumerate(piece.importance or ()):
            numbers = values.flatten().numpy()
            least = float(numbers.min(initial=0.0))
            total = torch.linalg.vector_norm(values, dtype=torch.float64).item() ** 2
            if not (least >= 0 and total < math.inf):
                raise ValueError(
                    f"importance[{place}] holds {least}, or numbers that are not finite, but the Fisher information is "
                    "finite and >= 0: compute it again as the mean of squared gradients."
                )
            squares[place] += total
            some = int(np.count_nonzero(numbers))
            positive[place] += some
            low[place] += int(np.count_nonzero(numbers < floor)) - (numbers.size - some)
    if shares is not None and len(shares) != len(squares):
        raise ValueError(
            f"shares={list(shares)} are {len(shares)}, but there are {len(squares)} files: give one for each."
        )
    without = [place for place, total in squares.items() if total == 0]
    if normalize and without:
        raise ValueError(
            f"importance[{without[0]}] is 0 everywhere, so it has no norm to divide by: compute it again, or "
            "use normalize=False."
        )
    for place, few in low.items():
        if 2 * few > (some := positive[place]):
            warnings.warn(
                f"importance[{place}] is below floor={floor} for {few / some:.0%} of the weights that it is above 0 "
                "for, so these count alike, as in a plain mean: use a smaller floor.",
                stacklevel=2,
            )
    norms = [math.sqrt(total) if normalize else 1.0 for _, total in sorted(squares.items())]
    return [share / norm for share, norm in zip(shares or [1.0] * len(norms), norms)]


def _merged(weights: Sequence[Tensor], importance: Sequence[Tensor], factors: Sequence[float], floor: float) -> Tensor:
    """The mean, as pulls on the newest, so that what is equal in all files stays equal to the bit."""
    newest = weights[-1]
    pull, total = torch.zeros_like(newest), torch.zeros_like(importance[-1])
    for weight, values, factor in zip(weights, importance, factors):
        counts = values.clamp_min(floor).mul_(factor)
        pull += (newest - weight).mul_(counts)
        total += counts
    return newest - pull.div_(total)


class FisherMerging(Merge):
    """Merges networks so that each weight comes mostly from the network to which it matters most.

    The merge is that of :func:`fisher_merge`, with norms over the whole network.

    Args:
        shares: how much each file counts; None for equal shares. The paper chooses them on a validation set.
        floor: the least importance of a weight.
        normalize: divide each network's importance by its norm.

    Raises:
        ValueError: a share or the floor is out of range.

    When to use: if networks of one start were trained on different tasks or data, and you can compute their Fisher
    information: it needs a pass over some hundred samples of each network's data, with a gradient for each sample.
    Cost: two passes over the files and those of importance, one of them for the norms; one if ``normalize`` is off
    costs the same, because the importance is checked there.
    Interactions: it needs a file of importance for each file. Heads of different classes cannot be merged. Floating
    buffers have no importance: name them with ``buffers=``, so that their plain mean is taken.

    Example:
        >>> merge = FisherMerging(normalize=False)
        >>> merge.tensor([torch.zeros(1), torch.ones(1)], importance=[torch.ones(1), 3 * torch.ones(1)])
        tensor([0.7500])
    """

    function = staticmethod(fisher_merge)
    callback = ""  # A training has no file of importance for each of its snapshots.
    linear = False
    asks = ("importance",)
    by_element = True

    def __init__(self, *, shares: Sequence[float] | None = None, floor: float = 1e-6, normalize: bool = True) -> None:
        _check(shares, floor)
        self.shares = shares
        self.floor = floor
        self.normalize = normalize

    def statistics(self, network: Iterable[MergePiece]) -> list[float]:
        """The factor of each network's importance."""
        return _factors(network, self.shares, self.floor, self.normalize)

    def tensor(
        self,
        weights: Sequence[Tensor],
        *,
        base: Tensor | None = None,
        importance: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        statistics: list[float] | None = None,
    ) -> Tensor:
        """The merge of one tensor, with the norms of the whole network."""
        if importance is None:
            raise ValueError("FisherMerging cannot merge without the importance of each weight: give importance=.")
        if statistics is None:
            return fisher_merge(
                weights, importance=importance, shares=self.shares, floor=self.floor, normalize=self.normalize
            )
        return _merged(weights, importance, statistics, self.floor)
