"""Keeps the raw tensors while averages stand in their place, and lets the two change places."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

_PIECE = {"cpu": 2**19}
"""How many elements change places at once: few enough that both sides of the exchange fit into a cache."""
_ELSEWHERE = 2**24
"""The same on other devices, where a call costs more time than a cache saves."""


class Journal:
    """Holds the raw tensors, by name, while averages stand in their place; all averages of a network share one."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}
        self._spare: dict[str, Tensor] = {}
        self._planned: _Exchange | None = None
        self._unfinished: Callable[[], None] | None = None

    def hold(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Copy the tensors that are not held yet, and return their names."""
        names = [name for name in tensors if name not in self.held]
        for name in names:
            spare, tensor = self._spare.pop(name, None), tensors[name]
            if spare is None or (spare.shape, spare.dtype, spare.device) != (tensor.shape, tensor.dtype, tensor.device):
                with torch.inference_mode(False):  # Training could not write to an inference tensor later.
                    spare = torch.empty_like(tensor)
            self.held[name] = spare.copy_(tensor)
        return names

    def exchange(self, places: Mapping[str, tuple[Tensor, list[Tensor], int]]) -> None:
        """Let tensors and shadows change places: the tensors then hold the average, the shadows the raw values.

        Args:
            places: by name, the tensor, the slot that holds its shadow, and the shadow's position in the slot.
        """
        shadows = {name: slot[at] for name, (_, slot, at) in places.items()}

        def note() -> None:
            for name, (tensor, slot, at) in places.items():
                slot[at] = tensor
                self.held[name] = shadows[name]

        self._exchange([(tensor, shadows[name]) for name, (tensor, *_) in places.items()], note)

    def exchange_back(self, places: Mapping[str, tuple[Tensor, list[Tensor], int]]) -> None:
        """Undo :meth:`exchange`."""
        shadows = {name: self.held[name] for name in places}

        def note() -> None:
            for name, (_, slot, at) in places.items():
                slot[at] = shadows[name]
                self.held.pop(name, None)

        self._exchange([(tensor, shadows[name]) for name, (tensor, *_) in places.items()], note)

    def _exchange(self, pairs: list[tuple[Tensor, Tensor]], note: Callable[[], None]) -> None:
        # Each validation makes the same moves, there and back, so they are planned once.
        if self._planned is None or not self._planned.is_of(pairs):
            self._planned = _Exchange(pairs)
        self._unfinished = partial(_run, [*self._planned.moves], note)
        self.finish()

    def finish(self) -> None:
        """Finish an exchange that an interrupt stopped on the way, so that neither weights nor averages are lost."""
        if self._unfinished is not None:
            self._unfinished()
            self._unfinished = None

    def forget(self) -> None:
        """Drop the planned exchange, whose tensors may have been replaced."""
        self._planned = None

    def release(self, names: Iterable[str]) -> None:
        """Forget the raw tensors of these names; the next ones use their memory again."""
        for name in names:
            self._spare[name] = self.held.pop(name)


class _Exchange:
    """Plans how pairs of tensors change places, in pieces so small that the copy of a piece stays in a cache.

    Args:
        pairs: in each, two tensors of the same type, device and strides.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self._pairs = pairs
        self.moves: list[tuple[list[Tensor], list[Tensor]]] = []
        alike: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, Tensor]]] = {}
        for one, other in pairs:
            alike.setdefault((one.dtype, one.device), []).append((one, other))
        for (dtype, device), group in alike.items():
            self._plan(group, dtype, device)

    def is_of(self, pairs: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether the plan is for these very tensors."""
        same = (a is c and b is d for (a, b), (c, d) in zip(self._pairs, pairs))
        return len(self._pairs) == len(pairs) and all(same)

    def _plan(self, pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype, device: torch.device) -> None:
        most = _PIECE.get(device.type, _ELSEWHERE)
        pieces = [piece for pair in pairs for piece in _pieces(*pair, most)]
        ones, others = ([pair[side] for pair in pieces] for side in (0, 1))
        sizes = [one.numel() for one in ones]
        groups = parts(ones, most)
        with torch.inference_mode(False):  # Training could not write to an inference tensor later.
            room = torch.empty(max(sum(sizes[part]) for part in groups), dtype=dtype, device=device)
        for part in groups:
            flat = torch.split(room[: sum(sizes[part])], sizes[part])
            copies = [piece.view(one.shape) for piece, one in zip(flat, ones[part])]
            self.moves += [(copies, ones[part]), (ones[part], others[part]), (others[part], copies)]


def _run(moves: list[tuple[list[Tensor], list[Tensor]]], note: Callable[[], None]) -> None:
    """Make the moves; the next call repeats one that an interrupt stopped.

    Args:
        moves: the moves that are left; each is removed once it is made.
        note: called at the end, to note what stands where; a second call does no harm.
    """
    while moves:
        torch._foreach_copy_(*moves[0])
        del moves[0]
    note()


def _pieces(one: Tensor, other: Tensor, most: int) -> list[tuple[Tensor, Tensor]]:
    """Cut two tensors into flat pieces, if their elements fill one stretch of memory each."""
    size = one.numel()
    if 1 + sum((length - 1) * stride for length, stride in zip(one.shape, one.stride())) != size:
        return [(one, other)]
    one, other = one.as_strided((size,), (1,)), other.as_strided((size,), (1,))
    return [*zip(torch.split(one, most), torch.split(other, most))]


def parts(tensors: Sequence[Tensor], most: int) -> list[slice]:
    """Group successive tensors, each group of at most ``most`` elements, or a single tensor that has more.

    >>> parts([torch.empty(n) for n in (3, 1, 2, 9, 4)], 4)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    groups, start, size = [], 0, 0
    for end, tensor in enumerate(tensors):
        if size and size + tensor.numel() > most:
            groups.append(slice(start, end))
            start, size = end, 0
        size += tensor.numel()
    return [*groups, slice(start, len(tensors))]
