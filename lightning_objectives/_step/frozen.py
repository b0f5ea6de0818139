"""A network that is asked and never changed: a teacher, or a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._step.head import resolve

Normalization = tuple[Sequence[float], Sequence[float]]
"""The mean and the standard deviation that inputs were normalized with, one number a channel."""


@dataclass(frozen=True)
class Answer:
    """What a frozen network says of a batch, without gradient."""

    logits: Tensor
    features: Tensor | None
    """What its head was given, where that is tapped."""


class Frozen:
    """A network outside of the user's module: in no state dict, optimizer, average or count, and in no process group.

    Each time it is asked it is in eval mode, whatever was done to it since, on the device of the inputs, and in their
    type (the module's own type for integer inputs).

    Args:
        network: it is changed in place; give it a copy of its own.
        head: path of its head, whose input is the answer's ``features``.
        tap: whether the features are wanted.
        translate: the normalization of the data, and that which the network was trained with; None leaves the inputs.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        head: str | None = None,
        tap: bool = False,
        translate: tuple[Normalization, Normalization] | None = None,
    ) -> None:
        self.network = network.requires_grad_(False)
        self.translation = None if translate is None else _affine(*translate)
        self._features: Tensor | None = None
        if tap:
            resolve(network, head)[1].register_forward_pre_hook(self._keep)

    def _keep(self, head: nn.Module, args: tuple[Any, ...]) -> None:
        self._features = args[0]

    def __call__(self, inputs: Tensor, dtype: torch.dtype) -> Answer:
        """Ask: ``dtype`` is that of the user's module."""
        dtype = inputs.dtype if inputs.is_floating_point() else dtype
        if any(p.device != inputs.device or (p.is_floating_point() and p.dtype != dtype) for p in self._tensors()):
            self.network.to(device=inputs.device, dtype=dtype)
        self.network.eval()
        try:
            with torch.inference_mode():
                logits = logits_of(self.network(self._translated(inputs)))
            features = self._features
        finally:
            self._features = None
        return Answer(_plain(logits), None if features is None else _plain(features))

    def _tensors(self) -> list[Tensor]:
        return [*self.network.parameters(), *self.network.buffers()]

    def _translated(self, inputs: Tensor) -> Tensor:
        if self.translation is None:
            return inputs
        factor, shift = self.translation
        if inputs.dim() < 2 or inputs.shape[1] != len(factor):
            raise ValueError(
                f"The normalization has {len(factor)} channels, the inputs are {tuple(inputs.shape)}: one number "
                "for each channel, which is dimension 1."
            )
        shape = (-1, *[1] * (inputs.dim() - 2))
        translated: Tensor = inputs * factor.to(inputs).view(shape) + shift.to(inputs).view(shape)
        return translated


def _plain(tensor: Tensor) -> Tensor:
    """What losses may keep for their backward pass, as no tensor of the inference mode can be."""
    return tensor.clone() if tensor.is_inference() else tensor


def _affine(data: Normalization, network: Normalization) -> tuple[Tensor, Tensor]:
    """The factor and the shift that take inputs from one normalization to the other, by channel."""
    (mean, std), (to_mean, to_std) = ([torch.tensor(v, dtype=torch.float64) for v in pair] for pair in (data, network))
    if len({len(v) for v in (mean, std, to_mean, to_std)}) != 1 or (std <= 0).any() or (to_std <= 0).any():
        raise ValueError(
            f"The normalizations {data} and {network} must be (mean, std) with one number a channel, std > 0."
        )
    return std / to_std, (mean - to_mean) / to_std


def logits_of(output: Any) -> Tensor:
    """The logits in what a network returns: a tensor, ``.logits``, ``["logits"]``, or the first of a tuple.

    Raises:
        ValueError: there are none.

    >>> logits_of({"logits": torch.ones(1), "loss": None}), logits_of((torch.ones(1), "hidden"))
    (tensor([1.]), tensor([1.]))
    """
    found = getattr(output, "logits", None)
    if isinstance(output, Tensor):
        found = output
    elif found is None and isinstance(output, Mapping):
        found = output.get("logits")
    elif found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        keys = f" with the keys {sorted(map(str, output))}" if isinstance(output, Mapping) else ""
        raise ValueError(
            f"The teacher returns a {type(output).__name__}{keys}, in which there are no logits: it must return a "
            "tensor, a tuple that begins with one, or something with `logits`. Wrap it in a module that does."
        )
    return found
