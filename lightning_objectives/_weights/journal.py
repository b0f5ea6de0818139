"""Where raw tensors are while averages stand in their place, and how the two change places."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

_PIECE = {"cpu": 2**19}
"""Elements that change places at once: with what they change with they fit a cache."""
_ELSEWHERE = 2**24
"""The same on other devices, where a call costs more than a cache gains."""


class Journal:
    """The raw tensors, by name, while averages stand in their place; one for all averages of a network."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}
        self._spare: dict[str, Tensor] = {}
        self._planned: _Exchange | None = None
        self._unfinished: Callable[[], None] | None = None

    def hold(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Copy those that are not held yet, and return their names."""
        names = [name for name in tensors if name not in self.held]
        for name in names:
            spare, tensor = self._spare.pop(name, None), tensors[name]
            if spare is None or (spare.shape, spare.dtype, spare.device) != (tensor.shape, tensor.dtype, tensor.device):
                with torch.inference_mode(False):  # or training could not write to it later
                    spare = torch.empty_like(tensor)
            self.held[name] = spare.copy_(tensor)
        return names

    def exchange(self, places: Mapping[str, tuple[Tensor, list[Tensor], int]]) -> None:
        """Let tensors and shadows change places: the ones hold the average now, the others the raw values.

        Args:
            places: by name the tensor, and the slot and the position in it of its shadow.
        """
        shadows = {name: slot[at] for name, (_, slot, at) in places.items()}

        def done() -> None:
            for name, (tensor, slot, at) in places.items():
                slot[at] = tensor
                self.held[name] = shadows[name]

        self._exchange([(tensor, shadows[name]) for name, (tensor, *_) in places.items()], done)

    def exchange_back(self, places: Mapping[str, tuple[Tensor, list[Tensor], int]]) -> None:
        """Undo :meth:`exchange`."""
        shadows = {name: self.held[name] for name in places}

        def done() -> None:
            for name, (_, slot, at) in places.items():
                slot[at] = shadows[name]
                self.held.pop(name, None)

        self._exchange([(tensor, shadows[name]) for name, (tensor, *_) in places.items()], done)

    def _exchange(self, pairs: list[tuple[Tensor, Tensor]], done: Callable[[], None]) -> None:
        # The way back is the way there, and the next validation's too: it is planned once.
        if self._planned is None or not self._planned.is_of(pairs):
            self._planned = _Exchange(pairs)
        self._unfinished = partial(_run, [*self._planned.moves], done)
        self.finish()

    def finish(self) -> None:
        """Finish an exchange that an interrupt stopped on the way, so that it loses neither."""
        if self._unfinished is not None:
            self._unfinished()
            self._unfinished = None

    def forget(self) -> None:
        """Let go of tensors that may have been replaced."""
        self._planned = None

    def release(self, names: Iterable[str]) -> None:
        """Forget the copies; their memory is used again."""
        for name in names:
            self._spare[name] = self.held.pop(name)


class _Exchange:
    """How pairs of tensors change places, a few at a time, so that what is aside stays in a cache.

    Args:
        pairs: two tensors of the same type, place and strides each.
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
        """Whether it is of these very tensors."""
        same = (a is c and b is d for (a, b), (c, d) in zip(self._pairs, pairs))
        return len(self._pairs) == len(pairs) and all(same)

    def _plan(self, pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype, device: torch.device) -> None:
        most = _PIECE.get(device.type, _ELSEWHERE)
        pieces = [piece for pair in pairs for piece in _pieces(*pair, most)]
        ones, others = ([pair[side] for pair in pieces] for side in (0, 1))
        sizes = [one.numel() for one in ones]
        found = parts(ones, most)
        with torch.inference_mode(False):  # or training could not write to it later
            room = torch.empty(max(sum(sizes[part]) for part in found), dtype=dtype, device=device)
        for part in found:
            flat = torch.split(room[: sum(sizes[part])], sizes[part])
            aside = [piece.view(one.shape) for piece, one in zip(flat, ones[part])]
            self.moves += [(aside, ones[part]), (ones[part], others[part]), (others[part], aside)]


def _run(moves: list[tuple[list[Tensor], list[Tensor]]], done: Callable[[], None]) -> None:
    """Make the moves; one that an interrupt stopped is made again by the next call.

    Args:
        moves: those that are left, each taken out when it is made.
        done: what to note at the end; it may be called again too.
    """
    while moves:
        torch._foreach_copy_(*moves[0])
        del moves[0]
    done()


def _pieces(one: Tensor, other: Tensor, most: int) -> list[tuple[Tensor, Tensor]]:
    """Two tensors in flat pieces, where their elements lie one behind the other in some order."""
    size = one.numel()
    if 1 + sum((length - 1) * stride for length, stride in zip(one.shape, one.stride())) != size:
        return [(one, other)]
    one, other = one.as_strided((size,), (1,)), other.as_strided((size,), (1,))
    return [*zip(torch.split(one, most), torch.split(other, most))]


def parts(tensors: Sequence[Tensor], most: int) -> list[slice]:
    """Successive tensors of so many elements together, or one that has more.

    >>> parts([torch.empty(n) for n in (3, 1, 2, 9, 4)], 4)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    found, start, size = [], 0, 0
    for end, tensor in enumerate(tensors):
        if size and size + tensor.numel() > most:
            found.append(slice(start, end))
            start, size = end, 0
        size += tensor.numel()
    return [*found, slice(start, len(tensors))]
