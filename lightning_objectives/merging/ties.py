"""TIES: a merge of networks that were fine-tuned from one base on different tasks."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_objectives.kinds import Merge, MergePiece
from lightning_objectives.shapes import check_tensors

_CELL = 2**16
"""How many magnitudes of float32 a cell of the coarse histogram holds."""
_CELLS = 2**15
"""The cells of all magnitudes of float32."""
_WINDOW = 3 * _CELL
"""How many magnitudes around the guess are counted one by one: 2.3 % of the magnitude and more."""
_PENDING = 2**19
"""How many numbers inside of the windows are kept until they are counted."""
_SAMPLED = 16
"""One of so many pieces, after the first so many, is read to guess where a threshold lies."""


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
        ValueError: the shapes differ, there is no network, or ``density`` is outside (0, 1].

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
    if not weights:
        raise ValueError("weights=[] hold no network to merge: give one tensor for each.")
    check_tensors([base] * len(weights), weights=weights)
    wide = [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (base, *weights)]
    piece, room = MergePiece(wide[1:], wide[0]), _Room()
    return _merged(piece, _thresholds([piece], density, room), scale, room)


def _check(density: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density={density} must be in (0, 1]: the part of the changes to keep; 1 keeps all.")


class _Room:
    """Memory for temporary values, which is taken once and not for each piece."""

    def __init__(self) -> None:
        self._rows: dict[torch.dtype, list[Tensor]] = {}

    def rows(self, count: int, like: Tensor) -> list[Tensor]:
        """So many vectors of the size and type of another, which hold anything."""
        rows, size = self._rows.get(like.dtype, []), like.numel()
        if len(rows) < count or rows[0].numel() < size:
            rows = self._rows[like.dtype] = [like.new_empty(size) for _ in range(count)]
        return rows[:count] if rows[0].numel() == size else [row[:size] for row in rows[:count]]


def _flat(piece: MergePiece) -> tuple[Tensor, list[Tensor]]:
    """The base and the weights as vectors of real numbers, the base in the widest type of all."""
    assert piece.base is not None
    tensors = [piece.base, *piece.weights]
    base, *weights = [torch.view_as_real(t).flatten() if t.is_complex() else t.flatten() for t in tensors]
    return base.to(reduce(torch.promote_types, (tensor.dtype for tensor in weights), base.dtype)), weights


def _thresholds(network: Iterable[MergePiece], density: float, room: _Room) -> list[float]:
    """The least magnitude that each network keeps, exact in float32; empty if all are kept.

    A coarse histogram of a sample guesses where a threshold lies, and one pass over everything finds it there by
    counting. If it does not lie there, the histogram is made of everything.
    """
    thresholds: list[float] = []
    for every in (_SAMPLED, 1) if density < 1 else ():
        guesses = [_cell_of(counts, density) for counts in _coarse_counts(network, every, room)]
        lows = [max(0, guess - 1) * _CELL for guess in guesses]
        places = [_cell_of(counts, density) for counts in _exact_counts(network, lows, room)]
        if all(0 < place <= _WINDOW for place in places):
            bits = np.array([low + place - 1 for low, place in zip(lows, places)], dtype=np.int32)
            thresholds = bits.view(np.float32).tolist()
            break
    return thresholds


def _magnitudes(piece: MergePiece, room: _Room) -> Iterator[tuple[int, Any]]:
    """The magnitudes of each network's changes: the bits of a float32 >= 0, read as a whole number, have its order."""
    base, weights = _flat(piece)
    (spare,) = room.rows(1, base)
    for place, weight in enumerate(weights):
        pull = torch.sub(base, weight, out=spare)
        if not math.isfinite(pull.sum().item()):
            # An infinity that base and file share is no change; any other is refused when it is merged.
            pull.nan_to_num_(0.0, 0.0, 0.0)
        yield place, pull.float().abs_().view(torch.int32).numpy()


def _coarse_counts(network: Iterable[MergePiece], every: int, room: _Room) -> list[Any]:
    """How many magnitudes of each network lie in each cell, of one piece of so many."""
    totals: list[Any] = []
    for number, piece in enumerate(network):
        totals = totals or [np.zeros(_CELLS, dtype=np.int64) for _ in range(len(piece.weights))]
        if number < every or number % every == 0:
            for place, bits in _magnitudes(piece, room):
                totals[place] += np.bincount(bits >> 16, minlength=_CELLS)
    return totals


def _exact_counts(network: Iterable[MergePiece], lows: Sequence[int], room: _Room) -> list[Any]:
    """How many magnitudes lie below the window that begins at the low, at each of its numbers, and above it."""
    counts = [np.zeros(_WINDOW + 2, dtype=np.int64) for _ in lows]
    inside: list[list[Any]] = [[] for _ in lows]
    pending = 0
    for piece in network:
        for place, bits in _magnitudes(piece, room):
            bits -= lows[place]
            found = bits[bits.view(np.uint32) < _WINDOW]  # a number below 0 is huge without its sign
            above = np.count_nonzero(bits >= _WINDOW)
            counts[place][0] += bits.size - found.size - above
            counts[place][-1] += above
            inside[place].append(found)
            pending += found.size
        if pending > _PENDING:
            _count(counts, inside)
            pending = 0
    _count(counts, inside)
    return counts


def _count(counts: Sequence[Any], inside: Sequence[list[Any]]) -> None:
    """Count what was found inside of the windows, and forget it."""
    for of_file, found in zip(counts, inside):
        if found:
            of_file[1:-1] += np.bincount(np.concatenate(found), minlength=_WINDOW)
            found.clear()


def _cell_of(counts: Any, density: float) -> int:
    """The cell that holds the last of the largest numbers that are kept."""
    from_the_top = np.cumsum(counts[::-1])
    keep = max(1, round(density * int(from_the_top[-1])))
    return len(counts) - 1 - int(np.searchsorted(from_the_top, keep))


def _merged(piece: MergePiece, thresholds: Sequence[float], scale: float, room: _Room) -> Tensor:
    base, weights = _flat(piece)
    sign, total, count, *pulls = room.rows(3 + len(weights), base)
    for place, (weight, pull) in enumerate(zip(weights, pulls)):
        # The opposite of the change: +0 where nothing changed, which leaves even a base of -0 as it is.
        torch.sub(base, weight, out=pull)
        if thresholds and thresholds[place] > 0:
            _trim(pull, thresholds[place])
        torch.add(sign, pull, out=sign) if place else sign.copy_(pull)
    sign.sign_()
    total.zero_()
    count.zero_()
    for pull in pulls:
        total += pull.mul_(sign).clamp_min_(0)
        count += pull.sign_()
    merged = base - total.div_(count.clamp_min_(1)).mul_(sign).mul_(scale)
    shape = piece.weights[0].shape
    return torch.view_as_complex(merged.view(*shape, 2)) if piece.weights[0].is_complex() else merged.view(shape)


def _trim(pull: Tensor, threshold: float) -> None:
    below = float(np.nextafter(np.float32(threshold), np.float32(0)))  # hardshrink drops what is equal to its limit
    if pull.dtype == torch.float32:
        torch.hardshrink(pull, below, out=pull)
    else:
        pull.masked_fill_(torch.hardshrink(pull.float(), below) == 0, 0.0)


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
    Cost: two passes over the files and a sixteenth: one for the thresholds, which are exact in float32, and one for the
    merge; with ``density=1`` one pass. While it counts, 3 MiB of memory for each file, and 4 MiB more.
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

    def statistics(self, network: Iterable[MergePiece]) -> tuple[list[float], _Room]:
        """The least magnitude that each network keeps, and memory for the merge."""
        room = _Room()
        return _thresholds(network, self.density, room), room

    def tensor(
        self,
        weights: Sequence[Tensor],
        *,
        base: Tensor | None = None,
        importance: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        statistics: tuple[list[float], _Room] | None = None,
    ) -> Tensor:
        """The merge of one tensor, with the thresholds of the whole network."""
        if base is None:
            raise ValueError("TIES cannot merge without the base: give base=, the weights before the fine-tuning.")
        if statistics is None:
            return ties_merge(weights, base=base, density=self.density, scale=self.scale)
        thresholds, room = statistics
        return _merged(MergePiece(weights, base), thresholds, self.scale, room)
