"""Averages the weights of a network over time, in a loop of your own."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_objectives._files.names import plainly_named
from lightning_objectives._trainer.names import by_class
from lightning_objectives._trainer.ranks import world_size
from lightning_objectives._weights.averages import Averages, Buffers
from lightning_objectives._weights.timing import Timing
from lightning_objectives.averaging.post_hoc_ema import add_snapshot, check_error, post_hoc_ema_coefficients
from lightning_objectives.kinds import Rule


class Average:
    """Averages the weights of a network over time, by one rule or by several, and leaves the training unchanged.

    It is the engine of ``AverageWeights``, and gives the same numbers to the bit. If several processes train the same
    weights, each keeps the same average by itself.

    Args:
        network: the network itself, not what DDP or Fabric wraps it in, so that the names are those of its parameters.
        rule: the averaging rule, or several.
        optimizers: the optimizer, or several. Their steps are counted, so that :meth:`update` after a step that a
            gradient scaler skipped changes nothing. Without them each :meth:`update` counts as a step.
        start_step: the number of optimizer steps after which the average begins.
        every_n_steps: optimizer steps between two updates.
        buffers: the buffers that the average is evaluated with. ``copy`` leaves those of the training; ``average``
            averages the floating ones too; ``recalibrate`` re-estimates BatchNorm's statistics in :meth:`applied`, by
            ``passes``.
        passes: for ``recalibrate``: runs the network over the training data, on each process over its own.
        device: where the average is kept; beside the parameters by default.
        parameters: the pattern, or several, of the names of the parameters that are averaged: ``"generator.*"``.

    Raises:
        ValueError: a setting outside its range, or a pattern that matches no parameter.

    Example:
        >>> from lightning_objectives.averaging import EMA
        >>> network = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        >>> average = Average(network, EMA(decay=0.5), optimizer)
        >>> for _ in range(2):
        ...     network.weight.grad = torch.ones(1, 1)
        ...     optimizer.step()
        ...     average.update()
        >>> raw = network.weight.item()
        >>> with average.applied():  # the first step was copied; the second went half of the way
        ...     round(network.weight.item() - raw, 4)
        0.5
        >>> network.weight.item() == raw
        True
    """

    def __init__(
        self,
        network: nn.Module,
        rule: Rule | Sequence[Rule],
        optimizers: Optimizer | Iterable[Optimizer] | None = None,
        *,
        start_step: int = 0,
        every_n_steps: int = 1,
        buffers: Buffers = "copy",
        passes: Callable[[], object] | None = None,
        device: str | torch.device | None = None,
        parameters: str | Sequence[str] | None = None,
    ) -> None:
        rules = list(rule) if isinstance(rule, Iterable) else [rule]
        if not rules or not all(isinstance(r, Rule) for r in rules):
            raise ValueError(f"rule={rule!r} must be an averaging rule, such as EMA(), or a sequence of them.")
        if buffers not in ("copy", "average", "recalibrate"):
            raise ValueError(f"buffers={buffers!r} must be 'copy', 'average' or 'recalibrate'.")
        if (buffers == "recalibrate") != (passes is not None):
            raise ValueError(
                f"buffers={buffers!r} with passes={passes!r}: 'recalibrate' needs passes=, a function that runs the "
                "network over the training data, and nothing else takes one."
            )
        if parameters is not None and not parameters:
            raise ValueError(f"parameters={parameters!r} averages nothing. Use a pattern like 'layers.*', or None.")
        self._rules = by_class(rules)
        self._averages = Averages(
            network,
            self._rules,
            timing=Timing(start_step, every_n_steps),
            buffers=buffers,
            device=None if device is None else torch.device(device),
            passes=None if passes is None else lambda norms: _joint(passes, norms),
            parameters=[parameters] if isinstance(parameters, str) else parameters,
        )
        watched = optimizers if isinstance(optimizers, Iterable) else [] if optimizers is None else [optimizers]
        self._averages.watch(watched)
        self._counts_steps = bool(watched)

    @property
    def network(self) -> nn.Module:
        """The network whose weights are averaged."""
        return self._averages.network

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the averages: the rules' class names in lower case, numbered where they repeat."""
        return tuple(self._rules)

    @property
    def steps(self) -> int:
        """The optimizer steps so far."""
        return self._averages.steps

    @property
    def updates(self) -> int:
        """How many updates the averages have had; before the first they are the weights of the training."""
        return self._averages.updates

    def update(self) -> None:
        """Take the weights into the average; call it after each optimizer step.

        Raises:
            RuntimeError: the optimizer has stepped while the average stood in the network.
        """
        self._averages.update(None if self._counts_steps else 1)

    @contextmanager
    def applied(self, name: str | None = None) -> Iterator[None]:
        """Let an average (the first, or the one named) stand in the network within a ``with`` block.

        The weights of the training then come back to the bit, also after an exception.

        Raises:
            ValueError: there is no average of this name.
        """
        name = self._known(name)
        if not self.updates:
            yield
            return
        with self._averages.applied(name):
            yield

    def weights(self, name: str | None = None) -> dict[str, Tensor]:
        """The weights of an average by parameter name, in each parameter's type, for ``torch.func.functional_call``.

        Never write to these tensors. Before the average begins, they are the weights of the training.
        """
        return self._averages.weights(self._known(name))

    def averaged_state_dict(self, name: str | None = None) -> dict[str, Any]:
        """A copy of the network's ``state_dict()`` with an average in it, to save or to load into another network."""
        with self.applied(name):
            state = self.network.state_dict()
            return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}

    def post_hoc_weights(
        self, states: Sequence[Mapping[str, Any] | str | Path], *, sigma_rel: float, max_error: float = 0.05
    ) -> dict[str, Tensor]:
        """The weights of a power-function average of any width, after a training that kept two of them.

        Give ``[PowerEMA(sigma_rel=0.05), PowerEMA(sigma_rel=0.1)]`` as the rules, and save :meth:`state_dict` eight
        times or more during the training.

        Args:
            states: paths of files that ``torch.save`` has written of :meth:`state_dict`, which are read one at a time,
                or copies of it (``copy.deepcopy``), because it holds the average itself; in any order. The latest gives
                the time.
            sigma_rel: the relative width of the average, in (0, 0.2886].
            max_error: the largest error of the profile, see ``post_hoc_ema``.

        Returns:
            the weights by parameter name, in each parameter's type, to load or for ``torch.func.functional_call``.

        Raises:
            ValueError: no rule is a ``PowerEMA``, no state holds an update, the averages began at different steps,
                states share their memory, or the error is above ``max_error``.
        """
        widths = {name: rule.sigma_rel for name, rule in self._rules.items() if hasattr(rule, "sigma_rel")}
        found = [
            (place, name, state["averages"][name]["updates"], state["start"])
            for place, state in enumerate(map(_loaded, states))
            for name in widths
            if state["averages"].get(name, {"updates": 0})["updates"]
        ]
        if not found or len({start for *_, start in found}) > 1:
            raise ValueError(
                f"The states hold {len(found)} power-function averages with an update, which began at the steps "
                f"{sorted({start for *_, start in found})}. Keep [PowerEMA(sigma_rel=0.05), PowerEMA(sigma_rel=0.1)], "
                "and give the states of one training."
            )
        self._refuse_shared([state for state in states if isinstance(state, Mapping)], widths)
        profile = post_hoc_ema_coefficients([(time, widths[name]) for _, name, time, _ in found], sigma_rel=sigma_rel)
        check_error(profile, sigma_rel=sigma_rel, max_error=max_error)
        last, name, *_ = max(found, key=lambda snapshot: snapshot[2])
        newest = {key: t.float() for key, t in _slots(_loaded(states[last]), name).items()}
        total = {key: t.clone() for key, t in newest.items()}
        for place, group in groupby(zip(found, profile.coefficients), key=lambda pair: pair[0][0]):
            state = _loaded(states[place])
            for (_, name, *_), share in group:
                add_snapshot(total, newest, _slots(state, name), share=share, where=f"states[{place}]")
        parameters = dict(plainly_named(self.network.named_parameters()))
        return {key: tensor.to(parameters[key]) for key, tensor in total.items()}

    def _refuse_shared(self, states: Sequence[Mapping[str, Any]], names: Iterable[str]) -> None:
        """Refuse states that hold the same tensors: the average went on in them."""
        slots = [_slots(state, name) for state in states for name in names if name in state["averages"]]
        own = [next(iter(average.values())).data_ptr() for average in [*slots, *map(self._averages.weights, names)]]
        if len({*own}) < len(own):
            raise ValueError(
                "The states share the memory of the average, which has gone on in them since. Keep copies, "
                "copy.deepcopy(average.state_dict()), or save each with torch.save."
            )

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on; the network's own state dict keeps the weights of the training.

        Raises:
            RuntimeError: an average stands in the network, so that the network's state dict would hold it too.
        """
        if self._averages.standing is not None:
            raise RuntimeError(
                "state_dict() within applied() would be saved beside the average in place of the weights of the "
                "training. Save outside of the with block."
            )
        if self._counts_steps:
            self._averages.update()  # A step may have been taken since.
        return self._averages.state_dict(raw=False)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`; load the network's own before.

        Raises:
            ValueError: the state is of other rules or of another network.
        """
        self._averages.load_state_dict(state)

    def remove(self) -> None:
        """Remove the hooks from the optimizers; the averages stay."""
        self._averages.unwatch()

    def _known(self, name: str | None) -> str:
        if name is not None and name not in self.names:
            raise ValueError(f"name={name!r} must be one of {list(self.names)}.")
        return name or self.names[0]


def _loaded(state: Mapping[str, Any] | str | Path) -> Any:
    """A state, from its file if it is a path."""
    if isinstance(state, Mapping):
        return state
    return torch.load(state, map_location="cpu", mmap=True, weights_only=True)


def _slots(state: Mapping[str, Any], name: str) -> Mapping[str, Tensor]:
    average: Mapping[str, Tensor] = state["averages"][name]["slots"]["average"]
    return average


def _joint(passes: Callable[[], object], norms: Sequence[_BatchNorm]) -> None:
    """Run the passes of each process, and average the statistics of ``norms`` over the processes."""
    passes()
    for norm in norms if world_size() > 1 else ():
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                dist.all_reduce(statistic)
                statistic /= world_size()
