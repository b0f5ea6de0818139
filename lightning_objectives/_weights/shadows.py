"""Keeps the averages of a network's tensors, one for each rule, beside the tensors themselves."""

import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_objectives._weights.journal import Journal, parts
from lightning_objectives._weights.timing import Timing
from lightning_objectives._weights.tracked import Tracked
from lightning_objectives._weights.turns import Turn, Turns
from lightning_objectives.kinds import AverageState, Rule

_PART = 2**20
"""How many elements of the weights several averages take in one after the other."""


class Shadows:
    """Keeps the shadows of a network's tensors: joins new tensors, follows moved ones, takes in weights and reads them.

    Args:
        network: the network whose tensors are averaged.
        rules: the averaging rules by name.
        buffers: whether the floating buffers are averaged too.
        device: where the shadows are; beside each tensor by default.
        journal: holds the raw tensors while an average stands in the network.
        patterns: the patterns of the names of the parameters that are averaged; None takes all.
    """

    def __init__(
        self,
        network: nn.Module,
        rules: Mapping[str, Rule],
        *,
        buffers: bool,
        device: torch.device | None,
        journal: Journal,
        patterns: Sequence[str] | None = None,
    ) -> None:
        self.network = network
        self.rules = dict(rules)
        self.journal = journal
        self.tensors = Tracked(network, buffers=buffers, device=device, patterns=patterns)
        self.states: dict[str, AverageState] = {}
        """By the name of the rule; empty until the averages begin."""
        self.order: list[str] = []
        """The names of the tensors, in the order of the slots."""
        self.turns = Turns()
        """How many steps the tensors of each optimizer have had."""

    @property
    def updates(self) -> int:
        """How many updates the averages have had; before the first they are no averages yet."""
        return max((state.updates for state in self.states.values()), default=0)

    def collect(self) -> None:
        """Walk through the network, and take in what is new there as it is now."""
        self.journal.forget()
        earlier_names = self.tensors.collect()
        self._arrange([earlier_names.get(name, name) for name in self.tensors.names])

    def _arrange(self, earlier_names: Sequence[str]) -> None:
        """Bring the shadows into the order of the tensors, and to where these are.

        A tensor that is new, or has another shape, becomes its own average, as if it had been constant so far; this is
        right for any rule.

        Args:
            earlier_names: for each tensor, the name that its shadow has had.
        """
        order, self.order = self.order, list(self.tensors.names)
        for name in set(order).difference(earlier_names):
            self.journal.held.pop(name, None)
        for key, state in self.states.items():
            old = {name: at for at, name in enumerate(order)}
            shapes = [shadow.shape for shadow in state.slots["average"]]
            places = [old.get(name, -1) for name in earlier_names]
            for at, live in enumerate(self.tensors.live):
                if places[at] >= 0 and shapes[places[at]] != live.shape:
                    self._warn_of_shape(self.order[at], shapes[places[at]], live.shape)
                    places[at] = -1
            if places != [*range(len(order))]:
                self._rebuild(state, self.rules[key], places)
        self._place()

    def _rebuild(self, state: AverageState, rule: Rule, places: Sequence[int]) -> None:
        """Let each slot hold its earlier shadows of these places, and new ones where the place is -1."""
        joining = {at: self.tensors.inputs[at] for at, place in enumerate(places) if place < 0}
        fresh = rule.init(list(joining.values())).slots if joining else {}
        for slot, shadows in state.slots.items():
            new = dict(zip(joining, fresh.get(slot) or [tensor.clone() for tensor in joining.values()]))
            state.slots[slot] = [new[at] if place < 0 else shadows[place] for at, place in enumerate(places)]

    def _warn_of_shape(self, name: str, before: torch.Size, now: torch.Size) -> None:
        self.journal.held.pop(name, None)
        if name in self.tensors.parameters:
            warnings.warn(
                f"{name} changed its shape from {tuple(before)} to {tuple(now)} in the training, so its average begins "
                "anew from its values of now; the averages of the other parameters go on. Resize parameters before "
                "the training if you need an average over all of it.",
                stacklevel=2,
            )

    def _place(self) -> None:
        """Bring the shadows and the raw tensors to where the parameters are."""
        tensors, held = self.tensors, self.journal.held
        with torch.inference_mode(False):
            for state in self.states.values():
                for slot, shadows in state.slots.items():
                    state.slots[slot] = [t.to(*tensors.shadow(live)) for t, live in zip(shadows, tensors.live)]
            for name, live in zip(tensors.names, tensors.live):
                if name in held:
                    held[name] = held[name].to(live.device)

    def follow(self) -> None:
        """Find the tensors again if a parameter was replaced, moved, cast or resized, or a buffer replaced or added."""
        self.journal.finish()
        if self.tensors.changed() or self.tensors.laid_out_anew():
            self._find_again()

    def _find_again(self) -> None:
        if not self.tensors.same_places():
            self.collect()
            return
        self.journal.forget()
        self.tensors.bind()
        self._arrange(self.tensors.names)

    def begin(self) -> None:
        """Begin the averages with the weights as they are now."""
        self.follow()
        self.tensors.fetch()
        with torch.inference_mode(False):
            self.states = {name: rule.init(self.tensors.inputs) for name, rule in self.rules.items()}
        self.order = list(self.tensors.names)
        self.turns.begin()

    def update(self, timing: Timing) -> None:
        """Take the weights into the averages that are due.

        The journal must have finished its exchanges.
        """
        tensors, due = self.tensors, self.turns.due(timing, self.rules)
        if not due:
            return
        if tensors.changed():
            self._find_again()
        tensors.fetch()
        if not tensors.inputs:
            raise RuntimeError(
                f"An optimizer took a step, but no parameter of {type(self.network).__name__} requires a gradient or "
                "has one, so there is nothing to average. Let the parameters require gradients, or begin the average "
                "later (start_step)."
            )
        if self.turns.parts:
            self.turns.arrange(tensors)
            due = self.turns.due(timing, self.rules)
        for turn, names in due:
            self._update(turn, names)
            turn.updated = turn.now.steps
        if tensors.buffers:
            self._keep_finite_buffers()

    def _update(self, turn: Turn, names: Collection[str]) -> None:
        """Let averages take in the weights of a turn."""
        inputs, step, start = self.tensors.inputs, turn.now.steps, turn.since.steps
        # On a GPU the start of a kernel costs more than reading the weights again.
        several = len(names) > 1 and inputs[0].is_cpu and all(self.rules[name].by_tensor for name in names)
        if turn.positions is None and not several:
            for name in names:
                state = self.states[name]
                self.rules[name].update(state, inputs, step=step, start=start)
                turn.updates[name] = state.updates
            return
        weights = _pick(inputs, turn.positions)
        updates = dict(turn.updates)
        # Several averages take in a few weights, then the next few, so that each weight is read from memory once.
        for part in parts(weights, _PART) if several else [slice(None)]:
            positions = None if turn.positions is None else turn.positions[part]
            few = weights[part]
            for name in names:
                slots = self.states[name].slots.items()
                chosen = {
                    slot: shadows[part] if positions is None else _pick(shadows, positions) for slot, shadows in slots
                }
                state = AverageState(chosen, turn.updates.get(name, 0), checked=few)
                self.rules[name].update(state, few, step=step, start=start)
                updates[name] = state.updates
        turn.updates = updates
        for name in names:
            self.states[name].updates = max(self.states[name].updates, updates[name])

    def _keep_finite_buffers(self) -> None:
        """Let a buffer's newest value stand for an average that is not finite, as that of a mask of infinities."""
        tensors = self.tensors
        groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for at in range(len(tensors.parameters), len(tensors.names)):
            groups.setdefault((tensors.inputs[at].dtype, tensors.inputs[at].device), []).append(at)
        for group in groups.values():
            inputs = [tensors.inputs[at] for at in group]
            newest = torch.cat([tensor.flatten() for tensor in inputs])
            for state in self.states.values():
                averages = [state.slots["average"][at] for at in group]
                values = torch.cat([tensor.flatten() for tensor in averages])
                values = torch.where(values.isfinite(), values, newest)
                flat = torch.split(values, [tensor.numel() for tensor in inputs])
                torch._foreach_copy_(averages, [part.view(t.shape) for part, t in zip(flat, inputs)])

    def raw(self) -> list[Tensor]:
        """The raw tensors, from the journal or from the network."""
        return [self.journal.held.get(name, live) for name, live in zip(self.tensors.names, self.tensors.live)]

    @torch.no_grad()
    def read(self, name: str, step: int) -> list[Tensor]:
        """The values of an average after optimizer step ``step``."""
        self.follow()
        tensors, state = self.tensors, self.states[name]
        if self.journal.held:
            raw = [tensor.to(*tensors.shadow(live)) for tensor, live in zip(self.raw(), tensors.live)]
        else:
            tensors.fetch()
            raw = tensors.inputs
        values = self._values(name, raw, step)
        # Buffers are averaged but never extrapolated, because a variance must stay positive.
        plain = state.slots["average"]
        return [v if key in tensors.parameters else p for key, v, p in zip(tensors.names, values, plain)]

    def _values(self, name: str, raw: list[Tensor], step: int) -> list[Tensor]:
        self.turns.arrange(self.tensors)
        rule, state, parts = self.rules[name], self.states[name], self.turns.parts
        if not parts or not rule.by_tensor:
            return rule.read(state, raw, step=step)
        values: dict[int, Tensor] = {}
        for part in parts:
            positions = part.positions or []
            slots = {slot: _pick(shadows, positions) for slot, shadows in state.slots.items()}
            own = AverageState(slots, part.updates.get(name, 0))
            values |= zip(positions, rule.read(own, _pick(raw, positions), step=part.now.steps))
        return [values[at] for at in range(len(raw))]


def _pick(tensors: list[Tensor], positions: Sequence[int] | None) -> list[Tensor]:
    return tensors if positions is None else [tensors[at] for at in positions]
