"""Makes up signals, and calls a method with those that it names."""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_map

from lightning_objectives._trainer.random import private_stream
from lightning_objectives.signals import BY_ROW, signals_of

_SIZES = {"features": 5, "classes": 3, "hidden": (4, 5), "teacher_features": 5, "teacher_hidden": (4, 5)}
"""The sizes of the example signals."""
_SAMPLES = 32
"""The least number of samples in the data set of a method that remembers them."""


def build(method: type[Any]) -> Any:
    """Build a method from its class, with its ``example`` settings if it has some, else with its defaults.

    A method that has parts builds them for the sizes of :func:`example_signals`.

    >>> from lightning_objectives.averaging import EMA
    >>> build(EMA)
    EMA(decay=0.999, warmup=False, power=0.6666666666666666)
    """
    settings = getattr(method, "example", {})
    if issubclass(method, LRScheduler):  # Its first argument is an optimizer.
        return method(torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.1), **settings)
    made = method(**settings)
    if hasattr(made, "build"):
        with private_stream(0):
            made.build(**{name: _SIZES[name] for name in inspect.signature(made.build).parameters})
    return made


def example_signals(*, rows: int = 6, classes: int = 3, features: int = 5, seed: int = 0) -> dict[str, Any]:
    """Make up a value for each signal, in float64 and without gradient.

    :func:`call` adds a new ``generator``, and the ``memory`` and ``memory_bank`` of a method that remembers.

    Args:
        rows: N.
        classes: C.
        features: D; the teacher's features have the same number.
        seed: the seed of all draws.

    Returns:
        the signals by name.

    >>> signals = example_signals(rows=3)
    >>> signals["logits"].shape, signals["target"].shape
    (torch.Size([3, 3]), torch.Size([3]))
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    with private_stream(seed):
        head = nn.Linear(features, classes, dtype=torch.float64)
        again = _Again(3 * 4 * 4, classes)
        body = nn.Linear(3 * 4 * 4, features, dtype=torch.float64)
    return {
        "again": again,
        "features": normal(rows, features),
        "gradients": normal(2, 10),
        "group": torch.arange(rows) % 2,
        "head": head,
        "hidden": (normal(rows, 4, 3, 2), normal(rows, 5, 2, 2)),
        "index": torch.randperm(rows, generator=generator),
        "inputs": normal(rows, 3, 4, 4),
        "logits": normal(rows, classes),
        "losses": normal(rows).exp(),
        "mask": torch.ones(rows, dtype=torch.bool),
        "memory": {},
        "memory_bank": {},
        "network": nn.Sequential(nn.Flatten(), body, head).eval(),
        "progress": torch.tensor(0.5),
        "reference_logits": normal(rows, classes),
        "reference_losses": normal(rows).exp(),
        "reference_weights": {name: normal(*shape) for name, shape in _shapes(body, head)},
        "step": torch.tensor(10),
        "epoch": torch.tensor(1),
        "target": torch.arange(rows) % classes,
        "teacher_features": normal(rows, features),
        "teacher_hidden": (normal(rows, 4, 3, 2), normal(rows, 5, 2, 2)),
        "teacher_logits": normal(rows, classes),
        "terms": normal(2).exp(),
    }


def _shapes(body: nn.Linear, head: nn.Linear) -> Iterator[tuple[str, torch.Size]]:
    """The shapes of the parameters of the network, by name."""
    for number, layer in (("1", body), ("2", head)):
        yield from ((f"{number}.{name}", parameter.shape) for name, parameter in layer.named_parameters())


class _Again(nn.Module):
    """The signal ``again`` of a network with dropout on its inputs."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.network = nn.Linear(inputs, classes, dtype=torch.float64)

    def forward(self, inputs: Tensor, seed: int = 0) -> Tensor:
        with private_stream(seed):
            kept = (torch.rand(self.network.in_features) < 0.8).to(inputs.device, inputs.dtype, non_blocking=True)
        logits: Tensor = self.network(inputs.flatten(1).to(self.network.weight.dtype) * kept)
        return logits


def arguments(method: Callable[..., Any], signals: dict[str, Any]) -> dict[str, Any]:
    """Select the signals that a method (a module or a function) names, with a new generator.

    >>> list(arguments(lambda losses, generator: None, example_signals()))
    ['losses', 'generator']
    """
    signals = {**signals, "generator": torch.Generator().manual_seed(0), **_remembered(method, signals)}
    return {name: signals[name] for name in signals_of(method)}


def _remembered(method: Any, signals: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """What the method remembers of new samples, and of all samples of a data set."""
    remembers = getattr(method, "remembers", {})
    if not remembers:
        return {"memory": {}, "memory_bank": {}}
    lengths = Counter(len(signals[name]) for name in BY_ROW if signals[name].dim())
    ((rows, _),) = lengths.most_common(1)  # One signal may have another length, to be refused.
    sizes: dict[Any, int] = {"C": signals["head"].out_features}
    bank, generator = {}, torch.Generator().manual_seed(0)
    for name, row in remembers.items():
        shape = [max(rows, _SAMPLES), *(sizes.get(size, size) for size in row.shape)]
        bank[name] = values = signals["losses"].new_full(shape, row.initial)
        if row.spread:
            draws = row.spread * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
            values += draws.to(values, non_blocking=True)
    return {"memory": {name: values[:rows] for name, values in bank.items()}, "memory_bank": bank}


def call(method: Callable[..., Any], signals: dict[str, Any], **settings: Any) -> Any:
    """Call a method with the signals that it names; equal calls return equal values.

    The call copies a module first, so that what it remembers does not reach the next call. Each call starts the global
    random stream anew, so that dropout drops the same, and restores it afterwards.

    Args:
        method: a module or a function, whose parameters name the signals.
        signals: all signals, see :func:`example_signals`.
        settings: the other arguments of a function.

    Returns:
        what the method returns.

    >>> call(lambda losses: losses + torch.rand(()), example_signals(rows=2)).shape
    torch.Size([2])
    """
    method = copy.deepcopy(method) if isinstance(method, nn.Module) else method
    asks = partial(method, **settings) if settings else method  # A setting without a default is no signal.
    with private_stream(0):
        return method(**arguments(asks, signals), **settings)


def take_rows(signals: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Select these rows of the signals, in this order."""
    return {
        name: value[rows] if name in BY_ROW else tuple(v[rows] for v in value) if isinstance(value, tuple) else value
        for name, value in signals.items()
    }


def require_grad(signals: dict[str, Any], *names: str) -> dict[str, Any]:
    """Copy the signals, and require a gradient for those named."""
    leaves = {name: tree_map(lambda v: v.detach().clone().requires_grad_(), signals[name]) for name in names}
    return signals | leaves
