"""Gives a method the hidden layers that it asks for, and the sizes with which it builds parts of its own."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lightning_objectives._step.compiled import lies_in_compiled
from lightning_objectives._step.member import Member
from lightning_objectives._step.taps import Tap, find_taps, sizes_of
from lightning_objectives._trainer.random import private_stream


class Building(Member):
    """A callback whose method may see hidden layers, and have parts that are trained with the network."""

    layers: str | Sequence[str] | None = None
    seed: int = 0
    taps: Sequence[Tap] = ()
    """The layers of the network, in a training."""
    has_parts = False
    """Whether the method's parts are built."""

    @property
    def needs_layers(self) -> bool:
        """Whether the user must name layers."""
        return "hidden" in self.signals

    @property
    def builds(self) -> bool:
        """Whether the method builds parts of its own."""
        return hasattr(self.method, "build")

    @property
    def sizes(self) -> tuple[str, ...]:
        """The names of the sizes that it needs."""
        method: Any = self.method
        return tuple(inspect.signature(method.build).parameters) if self.builds else ()

    def tap_layers(self, plan: Any) -> None:
        """Keep the outputs of the layers that the user names.

        Raises:
            ValueError: the method asks for them and none is named, or one lies in a compiled module.
        """
        self.taps = ()
        if not self.needs_layers:
            return
        if self.layers is None:
            raise ValueError(
                f"{self.method} asks for hidden layers of the network: name them by their paths in the module, as "
                "layers=['model.layer2', 'model.layer3'], or by a pattern, as layers='model.layer*'."
            )
        self.taps = find_taps(plan.module, self.layers, option="layers")
        for tap in self.taps:
            if lies_in_compiled(plan.module, tap.path):
                raise ValueError(
                    f"layers={self.layers!r}: the layer {tap.path!r} lies in a compiled module, where its output "
                    "cannot be seen. Compile the parts between the layers instead."
                )
            plan.capture.layer(tap)

    def build_parts(self, head: nn.Module | None, **sizes: Callable[[], Any]) -> None:
        """Let the method build its parts, on the CPU and from its own stream of random numbers.

        Args:
            head: the network's head, whose device and type the parts get.
            sizes: computes what ``build`` may name beside the sizes of the head and of the layers.
        """
        method: Any = self.method
        sizes["hidden"] = lambda: sizes_of(self.taps, option="layers")
        sizes["features"], sizes["classes"] = lambda: head_sizes(head)[0], lambda: head_sizes(head)[1]
        # Drawn on the CPU: `configure_model` makes modules on the device of the strategy by default.
        with private_stream(self.seed), torch.device("cpu"):
            method.build(**{name: sizes[name]() for name in self.sizes})
        like = next((head if head is not None else self.taps[0].layer).parameters())
        method.to(like.device, like.dtype)
        self.has_parts = True


def head_sizes(head: nn.Module | None, *, option: str = "head") -> tuple[int, int, bool]:
    """The numbers of features and of classes of a head, and whether they lie along dimension 1, as in a convolution.

    Raises:
        ValueError: the head holds no matrix of weights.
    """
    parts = [] if head is None else list(head.modules())
    layers: list[Any] = [m for m in parts if getattr(getattr(m, "weight", None), "ndim", 0) > 1]
    if not layers:
        raise ValueError(
            f"The head {type(head).__name__} holds no layer with a matrix of weights, so the sizes of what the method "
            f"builds on it are unknown. Name a head that has one with {option}='path.to.it'."
        )
    first, last = layers[0], layers[-1]
    features = getattr(first, "in_channels", None) or first.weight.shape[1]
    classes = getattr(last, "out_channels", None) or last.weight.shape[0]
    return int(features), int(classes), first.weight.dim() > 2
