"""Lets an average stand in the network for a while, and puts the raw weights back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_objectives._files.names import plainly_named
from lightning_objectives._weights.recalibrate import Passes, recalibrate, trained_norms
from lightning_objectives._weights.shadows import Shadows
from lightning_objectives._weights.shards import overlapping, reshard


class Swap:
    """Puts an average into the network and takes it out again, BatchNorm's statistics included.

    Args:
        shadows: the averages.
        recalibrates: whether the statistics of BatchNorm are re-estimated for each average.
        passes: runs the network over the training data, for ``recalibrates``.
    """

    def __init__(self, shadows: Shadows, *, recalibrates: bool, passes: Passes | None) -> None:
        self.shadows = shadows
        self.journal = shadows.journal
        self.recalibrates = recalibrates
        self.passes = passes
        self.name: str | None = None
        """The average that stands in the network now."""
        self.norms = trained_norms(shadows.network) if recalibrates else []
        """The layers whose statistics are re-estimated."""
        self.statistics: dict[str, Tensor] = {}
        """The statistics of the first average, as last estimated, at the step below."""
        self.statistics_step = -1

    def note_norms(self) -> None:
        """Note which layers are trained now, because the evaluation mode will hide which of them are frozen."""
        self.norms = trained_norms(self.shadows.network)

    @torch.no_grad()
    def put_in(self, name: str, step: int, *, exchange: bool, estimate: bool = True) -> None:
        """Let an average, as it is after optimizer step ``step``, stand in the network.

        Args:
            name: the name of the average.
            step: the optimizer step.
            exchange: whether weights and average change places where they can.
            estimate: whether the statistics are re-estimated; otherwise those of the last time stand there.
        """
        values, tensors = self.shadows.read(name, step), self.shadows.tensors
        self._reshard()
        self._settle()
        self.name = name
        owners = self._owners(name, values) if exchange and not self.journal.held else {}
        self.journal.exchange(self._places(owners))
        copied = [at for at in range(len(values)) if at not in owners]
        self.journal.hold({tensors.names[at]: tensors.live[at] for at in copied})
        if copied:
            torch._foreach_copy_([tensors.live[at] for at in copied], [values[at] for at in copied])
        if self.recalibrates and estimate:
            self._recalibrate(name, step)
        elif self.statistics:
            buffers = self.norm_buffers()
            self.journal.hold(buffers)
            for key, buffer in buffers.items():
                buffer.copy_(self.statistics[key])

    @torch.no_grad()
    def take_out(self) -> None:
        """Put the raw weights back; does nothing if they are in the network."""
        if self.name is None:
            return
        self.shadows.follow()
        self._reshard()
        self.journal.exchange_back(self._places(self._exchanged()))
        targets = self._targets()
        held = {key: self.journal.held[key] for key in targets if key in self.journal.held}
        if held:
            torch._foreach_copy_([targets[key] for key in held], list(held.values()))
        self.journal.release(held)
        self.name = None

    @contextmanager
    def applied(self, name: str, step: int, *, estimate: bool = True) -> Iterator[None]:
        """Let an average stand in the network within a ``with`` block; then put back what stood there, to the bit."""
        self.shadows.follow()
        targets = self._targets()
        # Tensors in the journal belong to another average that stands there now; the rest are raw, and go into it.
        before = {key: tensor.clone() for key, tensor in targets.items() if key in self.journal.held}
        outer = self.name
        try:
            self.put_in(name, step, exchange=False, estimate=estimate)
            yield
        finally:
            fresh = [key for key in targets if key not in before and key in self.journal.held]
            before |= {key: self.journal.held[key] for key in fresh}
            with torch.no_grad():
                self._reshard()
                if before:
                    torch._foreach_copy_([targets[key] for key in before], list(before.values()))
            self.journal.release(fresh)
            self.name = outer

    def norm_buffers(self) -> dict[str, Tensor]:
        """The statistics in the network that are re-estimated, by name."""
        if not self.norms:
            return {}
        ids = {id(buffer) for norm in self.norms for buffer in norm.buffers(recurse=False)}
        buffers = plainly_named(self.shadows.network.named_buffers())
        return {name: buffer for name, buffer in buffers if id(buffer) in ids}

    def _targets(self) -> dict[str, Tensor]:
        return dict(zip(self.shadows.tensors.names, self.shadows.tensors.live)) | self.norm_buffers()

    def _reshard(self) -> None:
        if self.shadows.tensors.sharded:
            reshard(self.shadows.network)

    def _places(self, owners: Mapping[int, list[Tensor]]) -> dict[str, tuple[Tensor, list[Tensor], int]]:
        tensors = self.shadows.tensors
        return {tensors.names[at]: (tensors.live[at], slot, at) for at, slot in owners.items()}

    def _owners(self, name: str, values: Sequence[Tensor]) -> dict[int, list[Tensor]]:
        """By position, the slots of the rule's state that hold the very tensors of an average, laid out as the weights.

        Three kinds of tensors are copied instead: all of a rule that keeps more than its slots, because it could hold
        on to such a tensor; buffers, because forward passes write to them; and tensors that share memory (``a.data =
        b.data``), because the second exchange would undo the first.
        """
        tensors, state = self.shadows.tensors, self.shadows.states[name]
        owners: dict[int, list[Tensor]] = {}
        if state.scratch:
            return owners
        slots, shared = list(state.slots.values()), overlapping(tensors.live)
        for at, (key, value, live) in enumerate(zip(tensors.names, values, tensors.live)):
            holders = [shadows for shadows in slots if shadows[at] is value]
            alike = value.stride() == live.stride() and value.dtype == live.dtype and value.device == live.device
            if len(holders) == 1 and alike and at not in shared and key in tensors.parameters and live.numel():
                owners[at] = holders[0]
        return owners

    def _exchanged(self) -> dict[int, list[Tensor]]:
        """By position, the slots whose tensor stands in the network, as :meth:`Journal.exchange` leaves it.

        A weight that was moved or cast since has a new storage; the old one then belongs to the average alone.
        """
        tensors = self.shadows.tensors
        slots = [shadows for state in self.shadows.states.values() for shadows in state.slots.values()]
        owners = {}
        for at, (key, live) in enumerate(zip(tensors.names, tensors.live)):
            owner = next((shadows for shadows in slots if shadows[at].data_ptr() == live.data_ptr()), None)
            if owner is not None and live.numel() and key in self.journal.held:
                owners[at] = owner
        return owners

    def _settle(self) -> None:
        """Copy an average that stands in the network by exchange, because something else will stand there."""
        if self.name is not None:
            for at, owner in self._exchanged().items():
                owner[at] = self.shadows.tensors.live[at].clone()

    def _recalibrate(self, name: str, step: int) -> None:
        buffers = self.norm_buffers()
        self.journal.hold(buffers)
        first = name == next(iter(self.shadows.rules))  # Only the statistics of the first average are kept.
        if first and self.statistics_step == step:
            for key, buffer in buffers.items():
                buffer.copy_(self.statistics[key])
            return
        if self.passes is None:
            raise RuntimeError(
                "buffers='recalibrate' cannot re-estimate the statistics of BatchNorm, because nothing runs the "
                "network over the training data. Pass passes=, a function that does."
            )
        recalibrate(self.shadows.network, self.norms, self.passes)
        if first:
            with torch.inference_mode(False):
                self.statistics = {key: torch.empty_like(b).copy_(b) for key, b in buffers.items()}
            self.statistics_step = step
