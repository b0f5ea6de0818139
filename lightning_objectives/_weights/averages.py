"""Averages the weights of one network over time: all that a training loop needs, without Lightning."""

import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_objectives._files.names import plainly_named
from lightning_objectives._weights import contents, saving
from lightning_objectives._weights.journal import Journal
from lightning_objectives._weights.optimizer_steps import OptimizerSteps
from lightning_objectives._weights.recalibrate import Passes
from lightning_objectives._weights.shadows import Shadows
from lightning_objectives._weights.shards import like, local
from lightning_objectives._weights.swap import Swap
from lightning_objectives._weights.timing import BEGINNING, EACH_STEP, Moment, Timing
from lightning_objectives._weights.turns import Turn
from lightning_objectives.kinds import AverageState, Rule

Buffers = Literal["copy", "average", "recalibrate"]


class Averages:
    """Averages the trainable weights of a network, once by each rule, beside a training loop.

    The shadows are float32 (or wider if the parameter is), by name, tied weights once. A parameter that becomes
    trainable later joins with the weights that it had while it was frozen. If a parameter is moved or cast, its shadow
    follows.

    Args:
        network: the network whose parameters are averaged.
        rules: the averaging rules by name.
        timing: when the averages begin, and when they are updated. Several optimizers that take turns in a batch count
            as one step, but the average of what only one of them steps is updated by its own steps.
        buffers: ``copy`` leaves them alone; ``average`` averages the floating ones by the rule's plain average;
            ``recalibrate`` re-estimates the statistics of BatchNorm when the average is swapped in.
        device: where the shadows are; that of each parameter by default.
        now: the optimizer steps and epochs before.
        epochs: tells how many epochs are completed, if ``timing`` counts in epochs; fewer than before do not matter.
        journal: shared with the other averages of this network.
        passes: for ``recalibrate``, runs the network over the training data.
        parameters: the patterns of the names of the parameters that are averaged; None takes all.

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
        >>> with averages.applied("ema"):  # the first step was copied; the second went half of the way
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
        timing: Timing = EACH_STEP,
        buffers: Buffers = "copy",
        device: torch.device | None = None,
        now: Moment = BEGINNING,
        epochs: Callable[[], int] = int,
        journal: Journal | None = None,
        passes: Passes | None = None,
        parameters: Sequence[str] | None = None,
    ) -> None:
        self.network = network
        self.timing = timing
        self.epochs = epochs
        self._in_epochs = timing.in_epochs
        self.buffers = buffers
        self.journal = journal or Journal()
        self._shadows = Shadows(
            network, rules, buffers=buffers == "average", device=device, journal=self.journal, patterns=parameters
        )
        self._shadows.turns.whole.now = now
        self._swap = Swap(self._shadows, recalibrates=buffers == "recalibrate", passes=passes)
        self._optimizer_steps = OptimizerSteps(before=self._before_step)
        self._group_sizes: dict[int, int] = {}
        self._masks: dict[str, Tensor] = {}
        self._saw_steps = False
        self._norms: Tensor | None = None
        """The norms of the weights when no step had been counted."""
        self._shadows.collect()
        self._begin()

    @property
    def names(self) -> list[str]:
        """The names of the tensors that are averaged, in the order of the slots."""
        return self._shadows.tensors.names

    @property
    def states(self) -> dict[str, AverageState]:
        """What each rule remembers, by its name; empty until the averages begin."""
        return self._shadows.states

    @property
    def updates(self) -> int:
        """How many updates the averages have had; before the first they are no averages yet."""
        return self._shadows.updates

    @property
    def steps(self) -> int:
        """The optimizer steps so far."""
        return self._shadows.turns.whole.now.steps

    @property
    def start(self) -> int:
        """The step at which the averages began; -1 before."""
        return self._shadows.turns.whole.since.steps

    # Over time.

    def watch(self, optimizers: Iterable[Optimizer]) -> None:
        """Count the steps that these optimizers really take, so that :meth:`update` needs no number."""
        self._optimizer_steps.watch(optimizers)
        watched, turns = self._optimizer_steps.optimizers, self._shadows.turns
        turns.watch(watched, self._shadows.tensors)
        indivisible = [rule for rule in self._shadows.rules.values() if not rule.by_tensor]
        if len(turns.parts) > 1 and indivisible:
            warnings.warn(
                f"{len(watched)} optimizers take turns, but {indivisible} can only average all weights at once "
                "(by_tensor is False), so the average of weights that rest is updated too, and moves towards them. "
                "Average a part alone with parameters=, or use a rule that treats each tensor by itself.",
                stacklevel=2,
            )

    def unwatch(self) -> None:
        """Remove the hooks from the optimizers."""
        self._optimizer_steps.remove()
        self._shadows.turns.unwatch()

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        # This is the last moment at which a parameter that is new or unfrozen still has its first weights.
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        if self._group_sizes.get(id(optimizer), size) != size or self._shadows.tensors.any_unfrozen():
            self._shadows.collect()
        self._group_sizes[id(optimizer)] = size

    def update(self, steps: int | None = None) -> None:
        """Take the weights into the averages, after optimizer steps were taken or an epoch has ended.

        Args:
            steps: how many; by default those counted since the last call, and several optimizers that took turns in
                between count as one.
        """
        counts = None
        if steps is None:
            counts = self._optimizer_steps.take_each()
            steps = max(counts.values(), default=0)
        turns = self._shadows.turns
        before = epochs = turns.whole.now.epochs
        if self._in_epochs:
            epochs = max(before, self.epochs())
        if not steps and epochs == before:
            if not self._saw_steps:
                self._look_for_unseen_steps()
            return
        self._saw_steps |= steps > 0
        self.journal.finish()
        if self.journal.held:
            if not steps:
                return  # The end of the epoch is counted once the raw weights are back.
            raise RuntimeError(
                "An optimizer step was taken while an average stood in the network, so it changed the average instead "
                "of the raw weights. Call swap_out() before the training goes on."
            )
        turns.add(steps, counts, epochs=epochs)
        with torch.no_grad():
            if turns.whole.begun:
                self._shadows.update(self.timing)
            else:
                self._begin()
        if self.buffers == "recalibrate":
            self._swap.note_norms()

    def _look_for_unseen_steps(self) -> None:
        """Warn if the weights change between two calls, but no step was counted."""
        tensors = self._shadows.tensors
        weights = tensors.live[: len(tensors.parameters)]
        if self.journal.held or not weights:
            return
        norms = torch.stack([norm.double().cpu() for norm in torch._foreach_norm(weights)]).nan_to_num()
        before, self._norms = self._norms, norms
        if before is not None and before.shape == norms.shape and not before.equal(norms):
            self._saw_steps = True  # It is said once.
            warnings.warn(
                f"The weights of {type(self.network).__name__} changed, but no optimizer that is watched took a step, "
                "so the average does not begin. Return each optimizer from configure_optimizers and step it by "
                "self.optimizers(); in a loop of your own, call watch([optimizer]), or update(1) after each step.",
                stacklevel=2,
            )

    def _begin(self) -> None:
        if self.timing.begun(self._shadows.turns.whole.now):
            self._shadows.begin()

    # Reading and swapping.

    def weights(self, name: str) -> dict[str, Tensor]:
        """The weights of an average, or ``"raw"``, by name, in the type and on the device of each parameter.

        With ``buffers="average"`` the averaged buffers are among them. So are the raw buffers, if the network holds the
        buffers of another average. Never write to these tensors.
        """
        shadows = self._shadows
        shadows.follow()
        values = shadows.raw() if name == "raw" or not self.updates else shadows.read(name, self.steps)
        sources = shadows.tensors.sources()
        weights = {
            key: like(value.to(live.device, live.dtype), sources[key])
            for key, value, live in zip(self.names, values, shadows.tensors.live)
        }
        if name != self._swap.name:
            held = self.journal.held
            buffers = (key for key, _ in plainly_named(self.network.named_buffers()))
            weights |= {key: held[key] for key in buffers if key in held and key not in weights}
        return weights

    def swap_in(self, name: str, *, exchange: bool = False) -> None:
        """Let an average stand in the network; the raw weights go into the journal.

        Args:
            name: the name of the average.
            exchange: let weights and average change places where they can, instead of copying the weights, so that the
                memory holds no further copy of the model. What is written to the weights before :meth:`swap_out` is
                then written to the average.
        """
        self._swap.put_in(name, self.steps, exchange=exchange)

    def swap_out(self) -> None:
        """Put the raw weights back; does nothing if they are in the network."""
        self._swap.take_out()

    def applied(self, name: str) -> AbstractContextManager[None]:
        """Let an average stand in the network within a ``with`` block; then put back what stood there, to the bit."""
        return self._swap.applied(name, self.steps)

    def note_masks(self) -> None:
        """Note what is pruned now, for :meth:`prune`; a callback may make the pruning permanent soon."""
        self._masks = self._shadows.tensors.masks()

    @torch.no_grad()
    def prune(self) -> None:
        """Prune the average that stands in the network as the raw weights were pruned for good."""
        self._shadows.follow()
        tensors = self._shadows.tensors
        for name, mask in self._masks.items():
            if name in tensors.parameters and name not in tensors.masks():
                local(tensors.parameters[name]).mul_(mask)

    # Saving.

    @property
    def standing(self) -> str | None:
        """The name of the average that stands in the network; None if the raw weights do."""
        return self._swap.name

    def stand_in(self, name: str) -> AbstractContextManager[None]:
        """Do what :meth:`applied` does, but re-estimate no statistics: those of the last time stand there."""
        if self.standing == name or not self.updates:
            return nullcontext()
        return self._swap.applied(name, self.steps, estimate=False)

    def is_plain(self, state_dict: Any) -> bool:
        """Whether :meth:`fill` knows the entries of a state dict of the network."""
        return saving.is_plain(state_dict, self.network)

    def fill(self, state_dict: MutableMapping[str, Any], name: str) -> None:
        """Put an average in place of the raw weights in a plain state dict of the network."""
        if self.updates:
            saving.fill(state_dict, self.network, *self._values(name))

    def holds(self, value: Any, name: str) -> bool:
        """Whether a part of a checkpoint, such as a pickled module, holds tensors of the network."""
        return contents.holds(value, *self._values(name))

    def kept(self, value: Any, name: str) -> Any:
        """Return a part of a checkpoint as it is while an average stands in the network, also for afterwards."""
        return contents.kept(value, *self._values(name))

    def first_raw(self, entries: Mapping[str, Tensor], name: str) -> str | None:
        """The key of an entry of a state dict that equals raw weights instead of their average, if there is one."""
        raw = dict(zip(self.names, self._shadows.raw()))
        return contents.first_raw(entries, *self._values(name), raw)

    def _values(self, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors of an average and those of the network in their place, by name, the statistics included."""
        values = dict(zip(self.names, self._shadows.read(name, self.steps)))
        sources = self._shadows.tensors.sources()
        if self._swap.statistics:
            values |= self._swap.statistics
            sources |= dict(plainly_named(self.network.named_buffers()))
        return values, sources

    def state_dict(self, *, raw: bool = True) -> dict[str, Any]:
        """All that is needed to go on: numbers and tensors by name, with whole tensors for sharded parameters.

        Args:
            raw: with the raw weights, which the checkpoint lacks if :meth:`fill` put an average in their place.
        """
        turns = self._shadows.turns
        state = {"steps": self.steps, "start": self.start, **saving.state_of(self._shadows, self._swap, raw=raw)}
        if self._in_epochs:
            whole = turns.whole
            state["epochs"] = {"now": whole.now.epochs, "start": whole.since.epochs, "updated": whole.updated}
        return {**state, "turns": turns.state()} if turns.parts else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, the raw weights in the network included.

        Raises:
            ValueError: the state is of other rules or of another network.
        """
        saving.load_state(self._shadows, self._swap, state)
        self._optimizer_steps.take()
        steps, start = int(state["steps"]), int(state["start"])
        epochs = state.get("epochs", {"now": 0, "start": min(start, 0), "updated": steps})
        whole = Turn(
            now=Moment(steps, int(epochs["now"])),
            since=Moment(start, int(epochs["start"])),
            updated=int(epochs["updated"]),
            updates={name: average.updates for name, average in self.states.items()},
        )
        self._shadows.turns.load(whole, state.get("turns", []), self._shadows.tensors)

    def adopt(self, average: Mapping[str, Tensor], *, updates: int) -> list[str]:
        """Go on from a plain average that another library made, and return the rules that need more than that."""
        turns = self._shadows.turns
        if not turns.whole.begun:
            self._shadows.begin()
        others = saving.adopt(self._shadows, average, updates=updates)
        turns.whole.updates = {name: state.updates for name, state in self.states.items()}
        turns.whole.since = self.timing.earlier(turns.whole.now, updates)
        return others
