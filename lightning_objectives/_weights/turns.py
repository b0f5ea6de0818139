"""Knows which optimizer steps which tensors, because the average of a part that rests must stay as it is."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from lightning_objectives._weights.timing import BEGINNING, NEVER, Moment, Timing
from lightning_objectives._weights.tracked import Tracked
from lightning_objectives.kinds import Rule


@dataclass
class Turn:
    """Counts the steps of the tensors that the same optimizers step, and of their average."""

    optimizers: frozenset[int] = frozenset()
    """The numbers of the optimizers; empty for tensors that no optimizer has, such as buffers: all count."""
    names: set[str] = field(default_factory=set)
    positions: list[int] | None = None
    """Where the tensors are among all; None for all of them."""
    before: Moment = BEGINNING
    """Before the last steps."""
    now: Moment = BEGINNING
    since: Moment = NEVER
    """When the average began."""
    updated: int = 0
    """The step of the last update, or of the beginning."""
    updates: dict[str, int] = field(default_factory=dict)
    """The updates that each rule has had."""

    @property
    def begun(self) -> bool:
        """Whether the average has begun."""
        return self.since.steps >= 0

    def begin(self) -> None:
        """Let the average begin now."""
        self.since, self.updated, self.updates = self.now, self.now.steps, {}

    def add(self, steps: int, epochs: int) -> None:
        """Count steps."""
        self.before = now = self.now
        self.now = Moment(now.steps + steps, epochs)

    def due(self, timing: Timing) -> bool:
        """Whether the average takes the weights in now; not if the tensors had no step since the last time."""
        return self.now.steps > self.updated and timing.due(self.before, self.now, self.since)


class Turns:
    """Divides the tensors of a network by the optimizers that step them, if there are several.

    Each part then counts the steps of its own optimizers, so that its average is the one that it would have alone.
    """

    def __init__(self) -> None:
        self.whole = Turn()
        """The whole network. Several optimizers that step in one batch count once."""
        self.parts: list[Turn] = []
        """Empty if there is one optimizer."""
        self._optimizers: list[Optimizer] = []
        self._owners: dict[int, tuple[Any, frozenset[int]]] = {}
        """By its id, each parameter and the numbers of its optimizers, if there are several."""
        self._saved: list[Mapping[str, Any]] = []
        self._sizes: list[int] = []
        self._arranged: object = None
        """The list of tensors that the positions are of."""

    def watch(self, optimizers: Sequence[Optimizer], tensors: Tracked) -> None:
        """Divide the tensors by these optimizers."""
        self._optimizers = list(optimizers)
        self.arrange(tensors)

    def unwatch(self) -> None:
        """Forget the optimizers, but not what each has stepped."""
        self._optimizers = []

    def begin(self) -> None:
        """Let the averages of all parts begin now."""
        for turn in (self.whole, *self.parts):
            turn.begin()

    def add(self, steps: int, counts: Mapping[int, int] | None, *, epochs: int) -> None:
        """Count steps: of all parts, or as many as each optimizer took, by its number."""
        self.whole.add(steps, epochs)
        for part in self.parts:
            own = [counts.get(number, 0) for number in part.optimizers] if counts is not None else []
            part.add(max(own, default=steps), epochs)

    def due(self, timing: Timing, rules: Mapping[str, Rule]) -> list[tuple[Turn, Collection[str]]]:
        """The parts, or the whole, whose averages take the weights in now, and the names of their rules."""
        if not self.parts:
            return [(self.whole, rules)] if self.whole.due(timing) else []
        divisible = [name for name, rule in rules.items() if rule.by_tensor]
        turns = [(part, divisible) for part in self.parts]
        turns.append((self.whole, [name for name in rules if name not in divisible]))
        return [(turn, names) for turn, names in turns if turn.due(timing)]

    def arrange(self, tensors: Tracked) -> None:
        """Find the places of the tensors again, and their optimizers, if either may have changed."""
        sizes = [sum(len(group["params"]) for group in optimizer.param_groups) for optimizer in self._optimizers]
        if tensors.inputs is self._arranged and sizes == self._sizes:
            return
        if len(sizes) > 1:
            self._note_owners()
        if self._owners:
            self._divide(tensors)
        self._sizes, self._arranged = sizes, tensors.inputs

    def _note_owners(self) -> None:
        self._owners = {}
        for number, optimizer in enumerate(self._optimizers):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    _, numbers = self._owners.get(id(parameter), (None, frozenset[int]()))
                    self._owners[id(parameter)] = parameter, numbers | {number}

    def _divide(self, tensors: Tracked) -> None:
        before, self.parts = {part.optimizers: part for part in self.parts}, []
        by_name = {name: part.optimizers for part in before.values() for name in part.names}
        positions: dict[frozenset[int], list[int]] = {}
        for at, name in enumerate(tensors.names):
            owner = self._owners.get(id(tensors.parameters.get(name)))
            # A parameter may take the place of another, whose optimizer still holds that one.
            optimizers = owner[1] if owner is not None else by_name.get(name, frozenset())
            positions.setdefault(optimizers, []).append(at)
        for optimizers, places in positions.items():
            part = before.get(optimizers) or self._new(optimizers)
            part.positions, part.names = places, {tensors.names[at] for at in places}
            self.parts.append(part)

    def _new(self, optimizers: frozenset[int]) -> Turn:
        """A part as it was saved; otherwise it has had all steps."""
        whole = self.whole
        part = Turn(optimizers, now=whole.now, since=whole.since, updated=whole.updated, updates={**whole.updates})
        for saved in self._saved:
            if optimizers == frozenset(saved["optimizers"]):
                part.now = Moment(int(saved["steps"]), whole.now.epochs)
                part.since = Moment(int(saved["start"]), whole.since.epochs)
                part.updated, part.updates = int(saved["updated"]), dict(saved["updates"])
        return part

    def state(self) -> list[dict[str, Any]]:
        """The counts of the parts."""
        return [
            {
                "optimizers": sorted(part.optimizers),
                "steps": part.now.steps,
                "start": part.since.steps,
                "updated": part.updated,
                "updates": dict(part.updates),
            }
            for part in self.parts
        ]

    def load(self, whole: Turn, parts: Sequence[Mapping[str, Any]], tensors: Tracked) -> None:
        """Go on from saved counts."""
        self.whole, self.parts, self._saved = whole, [], list(parts)
        self._arranged = None
        self.arrange(tensors)
