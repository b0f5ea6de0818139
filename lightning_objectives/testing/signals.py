"""Made-up signals, and a call that gives a method those that it names."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lightning_objectives.kinds import SIGNALS, signals_of

BY_ROW = frozenset(name for name, meaning in SIGNALS.items() if meaning.startswith("(N"))
"""The signals whose first dimension counts the samples."""


def build(method: type[Any]) -> Any:
    """An instance of a method's class with its defaults, or with its ``example`` settings where it has some.

    >>> from lightning_objectives.averaging import EMA
    >>> build(EMA)
    EMA(decay=0.999, warmup=False, power=0.6666666666666666)
    """
    settings = getattr(method, "example", {})
    if issubclass(method, LRScheduler):  # which torch gives its optimizer
        return method(torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.1), **settings)
    return method(**settings)


def example_signals(*, rows: int = 6, classes: int = 4, features: int = 5, seed: int = 0) -> dict[str, Any]:
    """A value for every signal, float64 and without gradient, but for the ``generator``, which each call makes anew.

    Args:
        rows: N.
        classes: C.
        features: D; the teacher's features have the same number.
        seed: of all the draws.

    Returns:
        the signals by name.

    >>> signals = example_signals(rows=3)
    >>> signals["logits"].shape, signals["target"].shape
    (torch.Size([3, 4]), torch.Size([3]))
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        head = nn.Linear(features, classes, dtype=torch.float64)
    return {
        "features": normal(rows, features),
        "gradients": normal(3, 10),
        "group": torch.arange(rows) % 2,
        "head": head,
        "index": torch.randperm(rows, generator=generator),
        "inputs": normal(rows, 3, 4, 4),
        "logits": normal(rows, classes),
        "losses": normal(rows).exp(),
        "network": nn.Sequential(nn.Identity(), head),
        "progress": torch.tensor(0.5),
        "reference_losses": normal(rows).exp(),
        "step": torch.tensor(10),
        "epoch": torch.tensor(1),
        "target": torch.arange(rows) % classes,
        "teacher_features": normal(rows, features),
        "teacher_logits": normal(rows, classes),
    }


def arguments(method: Callable[..., Any], signals: dict[str, Any]) -> dict[str, Any]:
    """Those of the signals that a method (a module or a function) names, with a fresh generator.

    >>> list(arguments(lambda losses, generator: None, example_signals()))
    ['losses', 'generator']
    """
    known = {**signals, "generator": torch.Generator().manual_seed(0)}
    return {name: known[name] for name in signals_of(method)}


def call(method: Callable[..., Any], signals: dict[str, Any], **settings: Any) -> Any:
    """Give a method those of the signals that it names; equal calls are equal.

    A module is copied first, so that what it remembers of one call does not reach the next, and the global random
    stream begins anew (and is put back), so that dropout drops the same.

    Args:
        method: whose ``forward`` or whose own parameters name the signals.
        signals: all of them, see :func:`example_signals`.
        settings: what a function takes beside the signals.

    Returns:
        what the method returns.

    >>> call(lambda losses: losses + torch.rand(()), example_signals(rows=2)).shape
    torch.Size([2])
    """
    method = copy.deepcopy(method) if isinstance(method, nn.Module) else method
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return method(**arguments(method, signals), **settings)


def take_rows(signals: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The same signals with these rows, in this order."""
    return {name: value[rows] if name in BY_ROW else value for name, value in signals.items()}


def require_grad(signals: dict[str, Any], *names: str) -> dict[str, Any]:
    """The same signals, with gradient for those named."""
    return {k: v.detach().clone().requires_grad_() if k in names else v for k, v in signals.items()}
