"""Averages the weights of a network over time, in a loop of your own."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_objectives._trainer.names import by_class
from lightning_objectives._trainer.ranks import world_size
from lightning_objectives._weights.averages import Averages, Buffers
from lightning_objectives._weights.timing import Timing
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


def _joint(passes: Callable[[], object], norms: Sequence[_BatchNorm]) -> None:
    """Run the passes of each process, and average the statistics of ``norms`` over the processes."""
    passes()
    for norm in norms if world_size() > 1 else ():
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                dist.all_reduce(statistic)
                statistic /= world_size()
