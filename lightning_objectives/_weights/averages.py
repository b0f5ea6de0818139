"""The averages of one network's weights: all that a training loop needs, without Lightning."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_objectives._weights.journal import Journal, parts
from lightning_objectives._weights.recalibrate import recalibrate, trained_norms
from lightning_objectives._weights.shards import address, like, local, reshard, shard_of, whole
from lightning_objectives._weights.tracked import Tracked, plain_name, plainly_named
from lightning_objectives.kinds import AverageState, Rule

Buffers = Literal["copy", "average", "recalibrate"]
_PART = 2**20
"""Elements of the weights that several averages take in one after the other."""


class Averages:
    """Averages of the trainable weights of a network, one by each rule, kept beside a training loop.

    The shadows are float32 (or wider where the parameter is), by name, tied weights once. A parameter that becomes
    trainable on the way joins with the weights that it had while it was frozen; one that is moved or cast is followed.

    Args:
        network: whose parameters are averaged.
        rules: the averaging rules by name.
        start_step: the number of optimizer steps after which the averages begin.
        every_n_steps: optimizer steps between two updates.
        buffers: ``copy`` leaves them alone; ``average`` averages the floating ones by the rule's plain average;
            ``recalibrate`` re-estimates the statistics of BatchNorm when the average is swapped in.
        device: where the shadows are; that of each parameter by default.
        steps: optimizer steps taken before.
        journal: shared with the other averages of this network.
        passes: for ``recalibrate``, runs the network over the training data.

    Example:
        >>> from lightning_objectives.averaging import EMA
        >>> net = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        >>> averages = Averages(net, {"ema": EMA(decay=0.5)})
        >>> averages.watch([optimizer])
        >>> for _ in range(2):
        ...     net.weight.grad = torch.ones(1, 1)
        ...     optimizer.step()
        ...     averages.update()
        >>> raw = net.weight.item()
        >>> with averages.applied("ema"):  # after the copy of the first step, half of the way to the second
        ...     round(net.weight.item() - raw, 4)
        0.5
        >>> net.weight.item() == raw
        True
    """

    def __init__(
        self,
        network: nn.Module,
        rules: Mapping[str, Rule],
        *,
        start_step: int = 0,
        every_n_steps: int = 1,
        buffers: Buffers = "copy",
        device: torch.device | None = None,
        steps: int = 0,
        journal: Journal | None = None,
        passes: Callable[[], None] | None = None,
    ) -> None:
        self.network = network
        self.rules = dict(rules)
        self.start_step = start_step
        self.every_n_steps = every_n_steps
        self.buffers = buffers
        self.device = device
        self.steps = steps
        self.journal = journal or Journal()
        self.passes = passes
        self.start = -1
        """The step at which the averages began; -1 before."""
        self.states: dict[str, AverageState] = {}
        self.applied_name: str | None = None
        """The average that stands in the network now."""
        self.norms = trained_norms(network) if buffers == "recalibrate" else []
        self.statistics: dict[str, Tensor] = {}
        """For ``recalibrate``: the statistics with the average, as last estimated, at the step below."""
        self.statistics_step = -1
        self._steps_of: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._handles: list[RemovableHandle] = []
        self._tensors = Tracked(network, buffers=buffers == "average", device=device)
        self._shadow = self._tensors.shadow
        self._sources = self._tensors.sources
        self._collect()
        self._begin()

    @property
    def names(self) -> list[str]:
        """Of the tensors that are averaged, in the order of the slots."""
        return self._tensors.names

    @property
    def _live(self) -> list[Tensor]:
        return self._tensors.live

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:
        return self._tensors.parameters

    @property
    def updates(self) -> int:
        """How many updates the averages have had; before the first they are no averages yet."""
        return max((state.updates for state in self.states.values()), default=0)

    # Which tensors: parameters join, move and are cast.

    def _collect(self) -> None:
        """Take in trainable parameters that are not averaged yet, as they are now."""
        self.journal.forget()
        joining = self._tensors.collect()
        if self.start >= 0:
            self._join(joining)
        self._place()

    def _join(self, names: Sequence[str]) -> None:
        """Weights that were constant so far are their own average, for any rule."""
        inputs = self._tensors.inputs
        at = [self.names.index(name) for name in names]
        for key, rule in self.rules.items():
            slots = self.states[key].slots
            fresh = rule.init([inputs[i] for i in at]).slots
            for slot, tensors in slots.items():
                for i, tensor in zip(at, fresh.get(slot) or [inputs[i].clone() for i in at]):
                    tensors.insert(i, tensor)

    def _place(self) -> None:
        """Bring the shadows to where the parameters are."""
        with torch.inference_mode(False):
            for state in self.states.values():
                for slot, tensors in state.slots.items():
                    state.slots[slot] = [t.to(*self._shadow(live)) for t, live in zip(tensors, self._live)]
            for name, live in zip(self.names, self._live):
                if name in self.journal.held:
                    self.journal.held[name] = self.journal.held[name].to(live.device)

    def _follow(self) -> None:
        """Bind anew where a parameter was moved or cast, or a buffer replaced."""
        self.journal.finish()
        if self._tensors.moved():
            self.journal.forget()
            self._tensors.bind()
            self._place()

    # Over time.

    def watch(self, optimizers: Iterable[Optimizer]) -> None:
        """Count the steps that these optimizers really take; :meth:`update` without a number then knows them."""
        for optimizer in optimizers:
            self._handles += [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            ]

    def unwatch(self) -> None:
        """Take the hooks off the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._steps_of.clear()

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        # The last moment at which a parameter that was unfrozen, or is new, has the weights that it came with.
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        if self._counts.get(id(optimizer), count) != count or self._tensors.waits_no_more():
            self._collect()
        self._counts[id(optimizer)] = count

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        # A fused optimizer is called though the gradients overflowed, and leaves the weights alone by itself.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is None or not overflow.item():
            self._steps_of[id(optimizer)] = self._steps_of.get(id(optimizer), 0) + 1

    @torch.no_grad()
    def update(self, steps: int | None = None) -> None:
        """Take the weights into the averages, after optimizer steps were taken.

        Args:
            steps: how many; by default those counted since the last call, and several optimizers that took turns in
                between count as one.
        """
        if steps is None:
            steps = max(self._steps_of.values(), default=0)
            self._steps_of.clear()
        if steps == 0:
            return
        self.journal.finish()
        if self.journal.held:
            raise RuntimeError("An optimizer step was taken while an average stood in the network. Swap it out first.")
        before, self.steps = self.steps, self.steps + steps
        if self.start < 0:
            self._begin()
        elif (self.steps - self.start) // self.every_n_steps > (before - self.start) // self.every_n_steps:
            self._follow()
            self._tensors.fetch()
            if len(self.rules) > 1 and all(rule.by_tensor for rule in self.rules.values()):
                self._update_by_parts()
            else:
                for name, rule in self.rules.items():
                    rule.update(self.states[name], self._tensors.inputs, step=self.steps, start=self.start)
        if self.buffers == "recalibrate":
            self.norms = trained_norms(self.network)  # evaluation modes will hide which of them are frozen

    def _update_by_parts(self) -> None:
        """All averages of a few weights, then of the next: the weights are read from memory once."""
        states = {}
        for part in parts(self._tensors.inputs, _PART):
            for name, rule in self.rules.items():
                whole = self.states[name]
                states[name] = AverageState({s: tensors[part] for s, tensors in whole.slots.items()}, whole.updates)
                rule.update(states[name], self._tensors.inputs[part], step=self.steps, start=self.start)
        for name, state in states.items():
            self.states[name].updates = state.updates

    def _begin(self) -> None:
        if self.steps >= self.start_step:
            self._follow()
            self._tensors.fetch()
            with torch.inference_mode(False):
                self.states = {name: rule.init(self._tensors.inputs) for name, rule in self.rules.items()}
            self.start = self.steps

    # Reading.

    def _raw(self) -> list[Tensor]:
        return [self.journal.held.get(name, live) for name, live in zip(self.names, self._live)]

    @torch.no_grad()
    def _read(self, name: str) -> list[Tensor]:
        self._follow()
        state = self.states[name]
        if self.journal.held:
            raw = [tensor.to(*self._shadow(live)) for tensor, live in zip(self._raw(), self._live)]
        else:
            self._tensors.fetch()
            raw = self._tensors.inputs
        values = self.rules[name].read(state, raw, step=self.steps)
        # Buffers are averaged but never extrapolated: a variance must stay positive.
        plain = state.slots["average"]
        return [v if key in self._parameters else p for key, v, p in zip(self.names, values, plain)]

    def weights(self, name: str) -> dict[str, Tensor]:
        """The weights of an average, or ``"raw"``, by name, in the type and place of each parameter.

        With ``buffers="average"`` the averaged buffers are among them; so are the raw ones, while those of an average
        stand in the network that is not asked for. Never write to them.
        """
        self._follow()
        values = self._raw() if name == "raw" or not self.updates else self._read(name)
        sources = self._sources()
        found = {
            key: like(value.to(live.device, live.dtype), sources[key])
            for key, value, live in zip(self.names, values, self._live)
        }
        if name != self.applied_name:
            buffers = (key for key, _ in plainly_named(self.network.named_buffers()))
            found |= {key: self.journal.held[key] for key in buffers if key in self.journal.held and key not in found}
        return found

    def fill(self, state_dict: MutableMapping[str, Any], name: str) -> None:
        """Put an average in place of the raw weights in a state dict of the network, whose keys and types are kept.

        Entries are recognised by their storage, so that renamed keys are found too, and else by their name.
        """
        if not self.updates:
            return
        values: dict[str, Tensor] = dict(zip(self.names, self._read(name)))
        sources = self._sources()
        if self.statistics:
            values |= self.statistics
            sources |= dict(plainly_named(self.network.named_buffers()))
        by_address = {(address(sources[key]), sources[key].shape): key for key in values}
        canonical = {id(sources[key]): key for key in values}
        aliases = plainly_named([*self.network.named_parameters(remove_duplicate=False), *self.network.named_buffers()])
        by_name = {alias: canonical[id(tensor)] for alias, tensor in aliases if id(tensor) in canonical}
        sharded = [key for key in values if hasattr(sources[key], "to_local")]
        wholes: dict[str, Tensor] = {}
        if sharded and not any(hasattr(entry, "to_local") for entry in state_dict.values()):
            wholes = {key: whole(values[key], sources[key]) for key in sharded}  # on every rank: it is collective
        for entry_name, entry in list(state_dict.items()):
            if not isinstance(entry, Tensor):
                continue
            key = by_address.get((address(entry), entry.shape)) or by_name.get(plain_name(entry_name))
            if key is not None:
                value = wholes.get(key, values[key])
                state_dict[entry_name] = like(value.to(local(entry).device, entry.dtype), entry)

    # Swapping.

    @torch.no_grad()
    def swap_in(self, name: str, *, exchange: bool = False) -> None:
        """Let an average stand in the network; the raw weights go into the journal.

        Args:
            name: of the average.
            exchange: let weights and average change places where they can, instead of copying the weights, so that no
                further copy of the model is in memory. What is written to the weights before :meth:`swap_out` is then
                written to the average.
        """
        values = self._read(name)
        self._reshard()
        self._settle()
        self.applied_name = name
        owners = self._owners(name, values) if exchange and not self.journal.held else {}
        self.journal.exchange(self._places(owners))
        copied = [at for at in range(len(values)) if at not in owners]
        self.journal.hold({self.names[at]: self._live[at] for at in copied})
        if copied:
            torch._foreach_copy_([self._live[at] for at in copied], [values[at] for at in copied])
        if self.buffers == "recalibrate":
            self._recalibrate(name)

    @torch.no_grad()
    def swap_out(self) -> None:
        """Put the raw weights back; does nothing where they are there."""
        if self.applied_name is None:
            return
        self._follow()
        self._reshard()
        self.journal.exchange_back(self._places(self._exchanged()))
        targets = dict(zip(self.names, self._live)) | self._norm_buffers()
        held = {key: self.journal.held[key] for key in targets if key in self.journal.held}
        if held:
            torch._foreach_copy_([targets[key] for key in held], list(held.values()))
        self.journal.release(held)
        self.applied_name = None

    def _reshard(self) -> None:
        if self._tensors.sharded:
            reshard(self.network)

    def _places(self, owners: Mapping[int, list[Tensor]]) -> dict[str, tuple[Tensor, list[Tensor], int]]:
        return {self.names[at]: (self._live[at], slot, at) for at, slot in owners.items()}

    def _owners(self, name: str, values: Sequence[Tensor]) -> dict[int, list[Tensor]]:
        """By position, the slots of the rule's state that hold the very tensors of an average, laid out as the weights.

        A rule that keeps more than its slots could be holding on to such a tensor, and buffers are written to by
        forward passes: both are copied.
        """
        state, found = self.states[name], dict[int, list[Tensor]]()
        if state.scratch:
            return found
        slots, parameters = list(state.slots.values()), self._parameters
        for at, (key, value, live) in enumerate(zip(self.names, values, self._live)):
            owners = [tensors for tensors in slots if tensors[at] is value]
            alike = value.stride() == live.stride() and value.dtype == live.dtype and value.device == live.device
            if len(owners) == 1 and alike and key in parameters and live.numel():
                found[at] = owners[0]
        return found

    def _exchanged(self) -> dict[int, list[Tensor]]:
        """By position, the slots whose tensor stands in the network, as :meth:`Journal.exchange` leaves it.

        Where a weight was moved or cast since, its old storage is the average's own.
        """
        slots = [tensors for state in self.states.values() for tensors in state.slots.values()]
        found = {}
        for at, (key, live) in enumerate(zip(self.names, self._live)):
            owner = next((tensors for tensors in slots if tensors[at].data_ptr() == live.data_ptr()), None)
            if owner is not None and live.numel() and key in self.journal.held:
                found[at] = owner
        return found

    def _settle(self) -> None:
        """Give an average that stands in the network by exchange a copy of its own: something else will stand there."""
        if self.applied_name is not None:
            for at, owner in self._exchanged().items():
                owner[at] = self._live[at].clone()

    def _norm_buffers(self) -> dict[str, Tensor]:
        if not self.norms:
            return {}
        ids = {id(buffer) for norm in self.norms for buffer in norm.buffers(recurse=False)}
        return {name: buffer for name, buffer in plainly_named(self.network.named_buffers()) if id(buffer) in ids}

    def _recalibrate(self, name: str) -> None:
        buffers = self._norm_buffers()
        self.journal.hold(buffers)
        first = name == next(iter(self.rules))  # the others' statistics are not kept
        if first and self.statistics_step == self.steps:
            for key, buffer in buffers.items():
                buffer.copy_(self.statistics[key])
            return
        if self.passes is None:
            raise RuntimeError("buffers='recalibrate' needs passes=, which runs the network over the training data.")
        recalibrate(self.network, self.norms, self.passes)
        if first:
            with torch.inference_mode(False):
                self.statistics = {key: torch.empty_like(b).copy_(b) for key, b in buffers.items()}
            self.statistics_step = self.steps

    @contextmanager
    def applied(self, name: str) -> Iterator[None]:
        """Within, an average stands in the network; afterwards what stood there before, to the bit."""
        self._follow()
        targets = dict(zip(self.names, self._live)) | self._norm_buffers()
        # What stands there now is raw, and then goes into the journal, or it is another average.
        before = {key: tensor.clone() for key, tensor in targets.items() if key in self.journal.held}
        outer = self.applied_name
        try:
            self.swap_in(name)
            yield
        finally:
            fresh = [key for key in targets if key not in before and key in self.journal.held]
            before |= {key: self.journal.held[key] for key in fresh}
            with torch.no_grad():
                self._reshard()
                torch._foreach_copy_([targets[key] for key in before], list(before.values()))
            self.journal.release(fresh)
            self.applied_name = outer

    # Saving.

    def state_dict(self, *, raw: bool = True) -> dict[str, Any]:
        """All that is needed to go on: numbers and tensors by name, whole ones where the parameters are sharded.

        Args:
            raw: with the raw weights, for the averages whose :meth:`fill` the checkpoint gets.
        """
        self._follow()
        sources = self._sources()

        def named(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
            return {name: whole(tensor, sources[name]) for name, tensor in zip(self.names, tensors)}

        kept: dict[str, Tensor] = {}
        if raw and self.updates:
            kept = named(self._raw())
            kept |= {name: self.journal.held.get(name, buffer) for name, buffer in self._norm_buffers().items()}
        waiting = {id(parameter) for parameter in self._tensors.waiting}
        return {
            "steps": self.steps,
            "start": self.start,
            "frozen": [name for name, p in plainly_named(self.network.named_parameters()) if id(p) in waiting],
            "raw": kept,
            "statistics": dict(self.statistics),
            "statistics_step": self.statistics_step,
            "averages": {
                name: {"updates": s.updates, "slots": {slot: named(tensors) for slot, tensors in s.slots.items()}}
                for name, s in self.states.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, the raw weights in the network included.

        Raises:
            ValueError: the state is of other rules or of another network.
        """
        averages = state["averages"]
        if averages and list(averages) != list(self.rules):
            raise ValueError(f"The state holds the averages {list(averages)}, but the rules are {list(self.rules)}.")
        restore(self.network, state["raw"])
        self._steps_of.clear()
        self.steps, self.start = int(state["steps"]), int(state["start"])
        self.statistics, self.statistics_step = dict(state["statistics"]), state["statistics_step"]
        self.states = {}
        if not averages:
            return
        saved = set(next(iter(averages.values()))["slots"]["average"])
        for name, parameter in plainly_named(self.network.named_parameters()):
            if name in saved and not any(parameter is p for p in self._parameters.values()):
                self._parameters[name] = parameter  # trained when it was saved, and frozen since
        sources = self._sources()
        new = [name for name in sources if name not in saved]
        if saved - set(sources) or set(new) - set(state["frozen"]):
            raise ValueError(
                "The state of the averages does not match the network: "
                f"missing in the network {sorted(saved - set(sources))}, "
                f"missing in the state {sorted(set(new) - set(state['frozen']))}. "
                "Resume with the network that was saved, or without this callback's state."
            )
        # The order of the slots is that of the names, which joined parameters come last in.
        self._tensors.parameters = {name: p for name, p in self._parameters.items() if name not in new}
        with torch.inference_mode(False):
            for name, rule in self.rules.items():
                asked, found = set(rule.init([torch.zeros(1)]).slots), set(averages[name]["slots"])
                if asked != found:
                    raise ValueError(f"The state of {rule} has the slots {sorted(found)}, not {sorted(asked)}.")
                slots = {
                    slot: [_fitting(tensors[key], sources[key], key).clone() for key in sources if key in saved]
                    for slot, tensors in averages[name]["slots"].items()
                }
                self.states[name] = AverageState(slots, int(averages[name]["updates"]))
        self._collect()

    @torch.no_grad()
    def adopt(self, average: Mapping[str, Tensor], *, updates: int) -> list[str]:
        """Go on from a plain average that another library made; returns the rules that need more than that."""
        average = {plain_name(name): tensor for name, tensor in average.items()}
        sources = self._sources()
        others = []
        for name, state in self.states.items():
            if set(state.slots) == {"average"}:
                for key, tensor in zip(self.names, state.slots["average"]):
                    tensor.copy_(_fitting(average[key], sources[key], key))
                state.updates = updates
            else:
                others.append(name)
        self.start = max(0, self.steps - updates * self.every_n_steps)
        return others


@torch.no_grad()
def restore(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into the parameters and buffers of a network, by name, in place.

    Raises:
        ValueError: a name that the network does not have, or another shape.
    """
    targets = dict(plainly_named([*network.named_parameters(), *network.named_buffers()]))
    missing = sorted(set(tensors) - set(targets))
    if missing:
        raise ValueError(f"The checkpoint holds raw weights that the network does not have: {missing}.")
    reshard(network)
    for name, tensor in tensors.items():
        local(targets[name]).copy_(_fitting(tensor, targets[name], name))


def _fitting(tensor: Tensor, of: Tensor, name: str) -> Tensor:
    if tensor.shape != of.shape:
        raise ValueError(f"{name} is {tuple(tensor.shape)} in the checkpoint, but {tuple(of.shape)} in the network.")
    return shard_of(tensor, of)
