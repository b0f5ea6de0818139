"""TIES: a merge of networks that were fine-tuned from one base on different tasks."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Merge, MergePiece
from lightning_objectives.shapes import check_tensors

_CELL = 2**16
"""How many magnitudes of float32 a cell of the histogram holds; the next pass looks into one cell."""
_CELLS = 0x7F80
"""The cells of the finite magnitudes; what is infinite or NaN has none."""


def ties_merge(weights: Sequence[Tensor], *, base: Tensor, density: float = 0.2, scale: float = 1.0) -> Tensor:
    r"""Compute a merge of fine-tuned weights in which small changes and changes of the rarer sign do not count.

    Of the change :math:`\tau_k = \theta_k - \theta_0` of each network, the part ``density`` of the largest magnitude is
    kept (trim), the sign of the larger total is elected for each weight, and the changes of this sign are averaged:

    .. math::
        \gamma_j = \operatorname{sgn} \sum_k \hat\tau_{k,j}, \qquad
        \theta_j = \theta_{0,j} + \lambda \,
        \operatorname{mean} \{ \hat\tau_{k,j} : \operatorname{sgn} \hat\tau_{k,j} = \gamma_j \ne 0 \}

    Args:
        weights: K tensors of one shape, in any float or complex type; complex numbers are pairs of weights.
        base: :math:`\theta_0`, of the same shape: what all networks were fine-tuned from.
        density: the part of the changes that is kept, in (0, 1]; 1 trims nothing. The number of kept changes is
            rounded to the nearest, and at least 1; changes of equal magnitude are kept or trimmed together.
        scale: :math:`\lambda`, the factor of the merged change.

    Returns:
        a tensor of the same shape; the base, to the bit, wherever no change is left.

    Raises:
        ValueError: the shapes differ, or ``density`` is outside (0, 1].

    Example:
        >>> tau = torch.tensor([[0.9, -0.1, 0.3, -0.4], [-0.5, 0.6, 0.1, 0.35]])
        >>> ties_merge([*tau], base=torch.zeros(4), density=0.5)
        tensor([ 0.9000,  0.6000,  0.0000, -0.4000])

    Paper: Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023, section 3 and
    algorithm 1, https://arxiv.org/abs/2306.01708.

    Differs from the paper's code: the code keeps one change more than ``density``, raises an error at density 1, and
    breaks a tie of the signs by the majority over the whole network. Here a tie leaves the base, as the paper's formula
    does. As in the code, the trim is over the whole network. mergekit and PEFT trim each tensor by itself instead, and
    resolve ties to plus.
    """
    _check(density)
    check_tensors([base] * len(weights), weights=weights)
    wide = [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (base, *weights)]
    piece = MergePiece(wide[1:], wide[0])
    return _merged(piece.weights, wide[0], _thresholds([piece], density), scale)


def _check(density: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density={density} must be in (0, 1]: the part of the changes to keep; 1 keeps all.")


def _thresholds(network: Iterable[MergePiece], density: float) -> list[float]:
    """The least magnitude, in float32, that each network keeps: exact, by a histogram of two passes; empty for all."""
    if density == 1:
        return []
    coarse = _counts(network, lows=None)
    keep = [max(1, round(density * int(counts.sum()))) for counts in coarse]
    for counts in coarse:  # Infinities that all files share are no changes; others are refused when they are merged.
        counts[0] += counts[_CELLS]
        counts[_CELLS] = 0
    found = [_cell_of(counts, number) for counts, number in zip(coarse, keep)]
    lows = [cell * _CELL for cell, _ in found]
    fine = _counts(network, lows=lows)
    rest = [number - above for number, (_, above) in zip(keep, found)]
    bits = [low + _cell_of(counts, number)[0] for low, counts, number in zip(lows, fine, rest)]
    thresholds: list[float] = np.array(bits, dtype=np.int32).view(np.float32).tolist()
    return thresholds


def _counts(network: Iterable[MergePiece], *, lows: Sequence[int] | None) -> list[Any]:
    """How many magnitudes of each network lie in each coarse cell, or at each number of the cell that begins at its low.

    The bits of a float32 >= 0, read as a whole number, have the order of the float itself. NumPy counts them, because
    torch's ``bincount`` is slow beside other threads.
    """
    totals: list[Any] = []
    size = _CELL if lows is not None else _CELLS + 1
    for piece in network:
        totals = totals or [np.zeros(size, dtype=np.int64) for _ in piece.weights]
        for place, weight in enumerate(piece.weights):
            bits = _pull(weight, piece.base).float().abs_().view(torch.int32).view(-1)
            if lows is None:
                cells = bits.bitwise_right_shift_(16).clamp_(max=_CELLS).numpy()
            else:
                offsets = bits.sub_(lows[place]).numpy()
                cells = offsets[offsets.view(np.uint32) < _CELL]
            totals[place] += np.bincount(cells, minlength=size)
    return totals


def _cell_of(counts: Any, number: int) -> tuple[int, int]:
    """The cell that holds the ``number``-th largest, and how many lie above it; the lowest cell if there are fewer."""
    from_the_top = np.cumsum(counts[::-1])
    steps = min(int(np.searchsorted(from_the_top, number)), len(counts) - 1)
    return len(counts) - 1 - steps, int(from_the_top[steps] - counts[len(counts) - 1 - steps])


def _pull(weight: Tensor, base: Tensor | None) -> Tensor:
    """What the change takes from the weight, in a new tensor.

    The opposite of the change: if it is +0, as for equal weights, then the base minus it is the base, of -0 too.
    """
    assert base is not None
    pull = base - weight
    return torch.view_as_real(pull) if pull.is_complex() else pull


def _trimmed(pull: Tensor, threshold: float) -> Tensor:
    if threshold == 0:
        return pull
    below = float(np.nextafter(np.float32(threshold), np.float32(0)))  # ``hardshrink`` drops what is equal to its limit.
    if pull.dtype == torch.float32:
        return F.hardshrink(pull, below)
    return torch.where(F.hardshrink(pull.float(), below) != 0, pull, torch.zeros_like(pull))


def _merged(weights: Iterable[Tensor], base: Tensor, thresholds: Sequence[float], scale: float) -> Tensor:
    pulls = [_pull(weight, base) for weight in weights]
    pulls = [_trimmed(pull, threshold) for pull, threshold in zip(pulls, thresholds)] if thresholds else pulls
    sign = sum(pulls[1:], pulls[0]).sign()
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for pull in pulls:
        total += pull.mul_(sign).clamp_min_(0)
        count += pull.sign_()
    change = total.div_(count.clamp_min_(1)).mul_(sign).mul_(scale)
    return base - (torch.view_as_complex(change) if base.is_complex() else change)


class TIES(Merge):
    """Merges networks that were fine-tuned from one base on different tasks into one that does all of the tasks.

    The merge is that of :func:`ties_merge`, trimmed over the whole network.

    Args:
        density: the part of each network's changes that is kept, in (0, 1]; the paper keeps 0.2.
        scale: the factor of the merged change; 1 in the paper, if there is no validation set to choose it on.

    Raises:
        ValueError: ``density`` is outside (0, 1].

    When to use: if several networks were fine-tuned from the same base on different tasks, and one network must do all
    of them without more training. On checkpoints of one training, a plain mean or :class:`WSM` is better founded.
    Cost: three passes over the files, two of them for the thresholds, which are exact in float32; one with
    ``density=1``. Memory for a histogram of 512 KiB for each file.
    Interactions: it needs the base. Name floating buffers, such as BatchNorm's statistics, with ``buffers=``:
    otherwise they take part in the trim like weights. Re-estimate BatchNorm's statistics after the merge. Heads of
    different classes cannot be merged. Names that are tied in the files of torch count once, but twice if a file of
    safetensors holds them twice.

    Example:
        >>> TIES(density=1.0).tensor([torch.tensor([3.0, 1.0]), torch.tensor([5.0, -1.0])], base=torch.ones(2))
        tensor([ 4., -1.])
    """

    function = staticmethod(ties_merge)
    linear = False
    asks = ("base",)
    by_element = True

    def __init__(self, *, density: float = 0.2, scale: float = 1.0) -> None:
        _check(density)
        self.density = density
        self.scale = scale

    def statistics(self, network: Iterable[MergePiece]) -> list[float]:
        """The least magnitude that each network keeps, by two passes; empty if all are kept."""
        return _thresholds(network, self.density)

    def tensor(
        self,
        weights: Sequence[Tensor],
        *,
        base: Tensor | None = None,
        importance: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        statistics: list[float] | None = None,
    ) -> Tensor:
        """The merge of one tensor, with the thresholds of the whole network."""
        if base is None:
            raise ValueError("TIES cannot merge without the base: give base=, the weights before the fine-tuning.")
        if statistics is None:
            return ties_merge(weights, base=base, density=self.density, scale=self.scale)
        return _merged(weights, base, statistics, self.scale)
