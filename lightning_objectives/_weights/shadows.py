"""Keeps the averages of a network's tensors, one for each rule, beside the tensors themselves."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_objectives._weights.journal import Journal, parts
from lightning_objectives._weights.tracked import Tracked
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
    """

    def __init__(
        self,
        network: nn.Module,
        rules: Mapping[str, Rule],
        *,
        buffers: bool,
        device: torch.device | None,
        journal: Journal,
    ) -> None:
        self.network = network
        self.rules = dict(rules)
        self.journal = journal
        self.tensors = Tracked(network, buffers=buffers, device=device)
        self.states: dict[str, AverageState] = {}
        """By the name of the rule; empty until the averages begin."""

    @property
    def updates(self) -> int:
        """How many updates the averages have had; before the first they are no averages yet."""
        return max((state.updates for state in self.states.values()), default=0)

    def collect(self) -> None:
        """Take in trainable parameters that are not averaged yet, as they are now."""
        self.journal.forget()
        joining = self.tensors.collect()
        if self.states:
            self._join(joining)
        self._place()

    def _join(self, names: Sequence[str]) -> None:
        """Make weights that were constant so far their own average, which is right for any rule."""
        inputs = self.tensors.inputs
        positions = [self.tensors.names.index(name) for name in names]
        for key, rule in self.rules.items():
            slots = self.states[key].slots
            fresh = rule.init([inputs[at] for at in positions]).slots
            for slot, shadows in slots.items():
                for at, shadow in zip(positions, fresh.get(slot) or [inputs[at].clone() for at in positions]):
                    shadows.insert(at, shadow)

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
        """Bind anew if a parameter was moved or cast, or a buffer replaced."""
        self.journal.finish()
        if self.tensors.changed():
            self._bind()

    def _bind(self) -> None:
        self.journal.forget()
        self.tensors.bind()
        self._place()

    def begin(self) -> None:
        """Begin the averages with the weights as they are now."""
        self.follow()
        self.tensors.fetch()
        with torch.inference_mode(False):
            self.states = {name: rule.init(self.tensors.inputs) for name, rule in self.rules.items()}

    def update(self, step: int, start: int) -> None:
        """Take the weights after optimizer step ``step`` into the averages, which began at step ``start``.

        The journal must have finished its exchanges.
        """
        tensors = self.tensors
        if tensors.changed():
            self._bind()
        tensors.fetch()
        # On a GPU the start of a kernel costs more than reading the weights again.
        on_cpu = bool(tensors.inputs) and tensors.inputs[0].is_cpu
        if on_cpu and len(self.rules) > 1 and all(rule.by_tensor for rule in self.rules.values()):
            self._update_by_parts(step, start)
        else:
            for name, rule in self.rules.items():
                rule.update(self.states[name], tensors.inputs, step=step, start=start)

    def _update_by_parts(self, step: int, start: int) -> None:
        """Update all averages of a few weights, then of the next few, so that each weight is read from memory once."""
        states, inputs = {}, self.tensors.inputs
        for part in parts(inputs, _PART):
            for name, rule in self.rules.items():
                state = self.states[name]
                states[name] = AverageState({s: shadows[part] for s, shadows in state.slots.items()}, state.updates)
                rule.update(states[name], inputs[part], step=step, start=start)
        for name, state in states.items():
            self.states[name].updates = state.updates

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
        values = self.rules[name].read(state, raw, step=step)
        # Buffers are averaged but never extrapolated, because a variance must stay positive.
        plain = state.slots["average"]
        return [v if key in tensors.parameters else p for key, v, p in zip(tensors.names, values, plain)]
