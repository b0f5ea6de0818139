"""Keeps what layers inside of a network return, for methods that compare or change hidden layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lightning_objectives._files.names import plain_name

_FIRST = {"out_channels": 1, "num_features": 1, "num_channels": 1}
_LAST = {"out_features": -1, "normalized_shape": -1, "embedding_dim": -1, "embed_dim": -1}
_CHANNELS: Mapping[str, int] = {**_FIRST, **_LAST}
"""The attributes in which layers keep the number of their output's channels, and the dimension of these."""


@dataclass(eq=False)
class Tap:
    """One layer, and what it has returned in the running pass."""

    path: str
    layer: nn.Module
    network: str
    """The name of the network's class, for messages."""
    outputs: list[Any] = field(default_factory=list)
    channels: int | None = None
    """The number of channels of its output; None if the layer does not show it."""
    _dim: int | None = None
    """Their dimension in the output."""

    def __post_init__(self) -> None:
        for part in reversed(list(self.layer.modules())):
            for name, dim in _CHANNELS.items():
                size = getattr(part, name, None)
                size = size[-1] if isinstance(size, tuple) and size else size
                if isinstance(size, int) and not isinstance(size, bool):
                    self.channels, self._dim = size, dim
                    return

    def read(self) -> Tensor:
        """The layer's output (N, channels, ...) in this pass.

        Raises:
            ValueError: the layer was not called once, returned no tensor, or one with other channels than it shows.
        """
        if len(self.outputs) != 1:
            raise ValueError(
                f"The step calls the layer {self.path!r} of {self.network} {len(self.outputs)} times, so it is unknown "
                "what it returns for the batch. Name a layer that each step calls once."
            )
        output = self.outputs[0]
        if isinstance(output, (tuple, list)) and output:
            output = output[0]
        if not isinstance(output, Tensor) or output.dim() < 2:
            shape = f" of the shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
            raise ValueError(
                f"The layer {self.path!r} of {self.network} returns a {type(output).__name__}{shape}, but it must be a "
                "tensor with a row of channels for each sample: (N, channels, ...). Name another layer."
            )
        return output.movedim(self._channel_dim(output), 1)

    def _channel_dim(self, output: Tensor) -> int:
        if self._dim is None:
            return -1 if output.dim() == 3 else 1
        fitting = [dim for dim in range(1, output.dim()) if output.shape[dim] == self.channels]
        own = self._dim % output.dim()
        if own in fitting or len(fitting) == 1:
            return own if own in fitting else fitting[0]
        raise ValueError(
            f"The layer {self.path!r} of {self.network} returns the shape {tuple(output.shape)}, in which no one "
            f"dimension has the {self.channels} channels of its last part. Name a layer inside of it, or after it."
        )


def find_taps(network: nn.Module, layers: str | Sequence[str], *, option: str) -> list[Tap]:
    """The layers of a network by their paths, or by patterns, in the order given.

    In a pattern ``*``, ``?`` and ``[...]`` stand for a part of one name, and a name of ``**`` for any number of names.

    Args:
        network: what holds them.
        layers: the paths or patterns.
        option: the name of the user's option, for messages.

    Raises:
        ValueError: a path or pattern names no layer, or one layer is named twice.

    >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
    >>> [(tap.path, tap.channels) for tap in find_taps(network, ["2", "[0-1]"], option="layers")]
    [('2', 4), ('0', 3), ('1', None)]
    """
    modules = {plain_name(path): (path, layer) for path, layer in network.named_modules() if path}
    found: dict[str, tuple[str, nn.Module]] = {}
    for name in map(plain_name, [layers] if isinstance(layers, str) else layers):
        matches = (
            [name] if name in modules else [path for path in modules if _matches(path.split("."), name.split("."))]
        )
        if not matches:
            some = ", ".join(list(modules)[:12])
            raise ValueError(
                f"{option}={layers!r}: {type(network).__name__} has no layer {name!r}. Its first layers are: {some}. "
                "print(dict(module.named_modules()).keys()) shows all."
            )
        twice = next((path for path in matches if path in found), None)
        if twice is not None:
            raise ValueError(f"{option}={layers!r} names the layer {twice!r} twice. Name each layer once.")
        found |= {path: modules[path] for path in matches}
    return [Tap(path, layer, type(network).__name__) for path, layer in found.values()]


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path has the form of a pattern, name by name."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[start:], pattern[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def sizes_of(taps: Sequence[Tap], *, option: str) -> tuple[int, ...]:
    """The numbers of channels of the layers, for parts that are built on their outputs.

    Raises:
        ValueError: a layer does not show it.
    """
    for tap in taps:
        if tap.channels is None:
            raise ValueError(
                f"{option}: the layer {tap.path!r}, {type(tap.layer).__name__}, does not show how many channels it "
                "returns. Name the layer before it, such as a convolution, a normalization or a linear layer."
            )
    return tuple(tap.channels for tap in taps if tap.channels is not None)
