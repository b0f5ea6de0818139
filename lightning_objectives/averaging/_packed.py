"""Many small tensors averaged as one: on the CPU a call for each costs more than what it does."""

from collections.abc import Sequence

import torch
from torch import Tensor

_SMALL = 2**15
"""Elements from which torch takes a second thread for a tensor."""


class Packed:
    """Lists of tensors in which the small ones are joined to one, and the rest stand as they are.

    Args:
        tensors: what is averaged.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        kinds: dict[torch.dtype, list[int]] = {}
        for at, tensor in enumerate(tensors):
            # elements side by side in some order, or they could not be copied in a row
            dense = tensor.numel() == 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride()))
            if tensor.device.type == "cpu" and tensor.numel() < _SMALL and dense:
                kinds.setdefault(tensor.dtype, []).append(at)
        self._groups = [group for group in kinds.values() if len(group) > 1]
        packed = {at for group in self._groups for at in group}
        self._alone = [at for at in range(len(tensors)) if at not in packed]
        self._forms = [(tensor.shape, tensor.stride()) for tensor in tensors]
        self._rows = [[tensors[at].as_strided((tensors[at].numel(),), (1,)) for at in g] for g in self._groups]
        with torch.inference_mode(False):
            self._flat = [torch.cat(rows) for rows in self._rows]
        self._tensors = [*(tensors[at] for at in self._alone), *self._flat]
        self._slots: dict[tuple[str, str], tuple[list[Tensor], list[Tensor]]] = {}

    def inputs(self) -> list[Tensor]:
        """The tensors as they are now."""
        for rows, flat in zip(self._rows, self._flat):
            torch.cat(rows, out=flat)
        return self._tensors

    def slots(self, name: str, slots: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """The slots of an average in the same order: what is written to them is written to its own tensors.

        Small tensors that do not lie in a joined one yet are moved into it.
        """
        found = {}
        for slot, tensors in slots.items():
            known, joined = self._slots.get((name, slot), ([], []))
            if len(known) != len(tensors) or any(a is not b for a, b in zip(known, tensors)):
                joined = self._join(tensors)
                self._slots[name, slot] = [*tensors], joined
            found[slot] = joined
        return found

    def _join(self, tensors: list[Tensor]) -> list[Tensor]:
        joined = [tensors[at] for at in self._alone]
        for group in self._groups:
            sizes = [tensors[at].numel() for at in group]
            with torch.inference_mode(False):
                flat = torch.empty(sum(sizes), dtype=tensors[group[0]].dtype)
                for at, part in zip(group, torch.split(flat, sizes)):
                    shape, stride = self._forms[at]
                    tensors[at] = part.as_strided(shape, stride).copy_(tensors[at])
            joined.append(flat)
        return joined
