"""Asks a network that never changes, such as a teacher, for its logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_objectives._step.head import resolve
from lightning_objectives._step.taps import Tap, find_taps

BY_CALL = "say how to call it: teacher_call=lambda teacher, batch: teacher(batch[0])"
BY_MODULE = "wrap it in a module that takes the same"

Normalization = tuple[Sequence[float], Sequence[float]]
"""The mean and the standard deviation of a normalization, one number per channel."""


@dataclass(frozen=True)
class Answer:
    """The output of a frozen network for a batch, without gradient."""

    logits: Tensor
    features: Tensor | None = None
    """The input of its head; None if that is not tapped."""
    hidden: tuple[Tensor, ...] = ()
    """The outputs (N, channels, ...) of the tapped layers."""


class Frozen:
    """Keeps a network outside of the user's module: in no state dict, optimizer, average, count or process group.

    Each call runs it in eval mode, on the device of the inputs and in their type (the type of the user's module for
    integer inputs), whatever the training did to it since.

    Args:
        network: changed in place, so pass a copy of your own.
        head: path of its head, whose input is the answer's ``features``.
        tap: whether to keep the features.
        layers: the paths of the layers whose outputs to keep, or patterns.
        translate: the normalization of the data, and the one that the network was trained with; None leaves the inputs
            as they are.
        name: what messages call the network.
        way_out: what users can do if the network takes something else than their own, for messages.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        head: str | None = None,
        tap: bool = False,
        layers: str | Sequence[str] | None = None,
        translate: tuple[Normalization, Normalization] | None = None,
        name: str = "teacher",
        way_out: str = BY_CALL,
    ) -> None:
        self.name = name
        self.way_out = way_out
        self.network = network.requires_grad_(False)
        self.translation = None if translate is None else _affine(*translate)
        self._features: Tensor | None = None
        self._head_output: Any = None
        self.head: nn.Module | None = None
        """Its head, if the features are kept."""
        self._guess = ""
        """The path of a head that nobody has named, until the first answer proves that it gives the logits."""
        if tap:
            path, self.head = resolve(network, head)
            self.head.register_forward_hook(self._keep)
            self._guess = path if head is None else ""
        self.taps = [] if layers is None else find_taps(network, layers, option="teacher_layers")
        for tapped in self.taps:
            tapped.layer.register_forward_hook(partial(_note, tapped))

    def _keep(self, head: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._features, self._head_output = args[0], output

    def _prove(self, logits: Tensor) -> None:
        """Prove that the head that was found gives the logits, and not one of several networks alone.

        Raises:
            ValueError: it does not.
        """
        path, self._guess, output = self._guess, "", self._head_output
        same = (
            isinstance(output, Tensor) and output.numel() == logits.numel() and output.flatten().equal(logits.flatten())
        )
        if not same:
            raise ValueError(
                f"The method asks for the features of the teacher, the input of its head. {path!r} looks like the "
                f"head, but its output is not what {type(self.network).__name__} returns: it may be one network of "
                "several, or its output is changed afterwards. Name the head whose input to take with teacher_head=."
            )

    def __call__(self, *args: Any, dtype: torch.dtype, **kwargs: Any) -> Answer:
        """Call the network; ``dtype`` is that of the user's module. The first tensor is its inputs.

        Raises:
            ValueError: the network cannot be called so; the message says what to do.
        """
        leaves, spec = tree_flatten((args, kwargs))
        first = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)), None)
        inputs = None if first is None else leaves[first]
        if first is not None and self.translation is not None:
            leaves[first] = self._translated(leaves[first], dtype)
        args, kwargs = tree_unflatten(leaves, spec)
        return self.answer(lambda network: network(*args, **kwargs), inputs, dtype)

    def answer(self, call: Callable[[nn.Module], Any], inputs: Tensor | None, dtype: torch.dtype) -> Answer:
        """Let ``call`` call the network, which goes to the device and the type of the inputs first.

        Raises:
            ValueError: the call fails, or returns no logits.
        """
        if inputs is not None:
            dtype = inputs.dtype if inputs.is_floating_point() else dtype
            if any(p.device != inputs.device or (p.is_floating_point() and p.dtype != dtype) for p in self._tensors()):
                self.network.to(device=inputs.device, dtype=dtype)
        self.network.eval()
        try:
            with torch.inference_mode():
                logits = logits_of(self._called(call, inputs), name=self.name)
                if self._guess:
                    self._prove(logits)
            features = self._features
            hidden = tuple(_plain(tap.read()) for tap in self.taps)
        finally:
            self._features = self._head_output = None
            for tap in self.taps:
                tap.outputs.clear()
        return Answer(_plain(logits), None if features is None else _plain(features), hidden)

    def _called(self, call: Callable[[nn.Module], Any], inputs: Tensor | None) -> Any:
        try:
            return call(self.network)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            got = "" if inputs is None else f" with {inputs.dtype} inputs of shape {tuple(inputs.shape)}"
            # Only those who can say how to call it can say a normalization too.
            whole = self.way_out == BY_CALL and inputs is not None and not inputs.is_floating_point()
            raise ValueError(
                f"The {self.name} {type(self.network).__name__} failed when it was called{got}: "
                f"{type(error).__name__}: {error}. "
                + (
                    "If it needs scaled inputs, give data_normalization= and teacher_normalization=, for example "
                    "data_normalization=([0] * 3, [1 / 255] * 3) for bytes that become numbers in [0, 1]. "
                    if whole
                    else ""
                )
                + f"It is called as the network of your step is; if it takes something else, {self.way_out}."
            ) from error

    def _tensors(self) -> list[Tensor]:
        return [*self.network.parameters(), *self.network.buffers()]

    def _translated(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        assert self.translation is not None
        factor, shift = self.translation
        inputs = inputs if inputs.is_floating_point() else inputs.to(dtype)  # Bytes are numbers from 0 to 255.
        if inputs.dim() < 2 or inputs.shape[1] != len(factor):
            raise ValueError(
                f"The normalization has {len(factor)} channels, the inputs are {tuple(inputs.shape)}, whose channels "
                "are dimension 1. Give one number for each channel."
            )
        shape = (-1, *[1] * (inputs.dim() - 2))
        translated: Tensor = inputs * factor.to(inputs).view(shape) + shift.to(inputs).view(shape)
        return translated


def _note(tap: Tap, layer: nn.Module, args: Any, output: Any) -> None:
    tap.outputs.append(output)


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that a loss can keep for its backward pass, which torch forbids for tensors of the inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def _affine(data: Normalization, network: Normalization) -> tuple[Tensor, Tensor]:
    """The factor and the shift by channel that turn inputs of one normalization into inputs of the other."""
    (mean, std), (to_mean, to_std) = ([torch.tensor(v, dtype=torch.float64) for v in pair] for pair in (data, network))
    if len({len(v) for v in (mean, std, to_mean, to_std)}) != 1 or (std <= 0).any() or (to_std <= 0).any():
        raise ValueError(
            f"The normalizations {data} and {network} do not fit together: each must be (mean, std) with one number a "
            "channel and std > 0."
        )
    return std / to_std, (mean - to_mean) / to_std


def logits_of(output: Any, *, name: str = "teacher") -> Tensor:
    """Find the logits in a network's output: a tensor, ``.logits``, ``["logits"]``, or the first item of a tuple.

    Raises:
        ValueError: there are none.

    >>> logits_of({"logits": torch.ones(1), "loss": None}), logits_of((torch.ones(1), "hidden"))
    (tensor([1.]), tensor([1.]))
    """
    logits = getattr(output, "logits", None)
    if isinstance(output, Tensor):
        logits = output
    elif logits is None and isinstance(output, Mapping):
        logits = output.get("logits")
    elif logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor):
        keys = f" with the keys {sorted(map(str, output))}" if isinstance(output, Mapping) else ""
        raise ValueError(
            f"The {name} returns a {type(output).__name__}{keys}, in which there are no logits. It must return a "
            "tensor, a tuple that begins with one, or something with `logits`: wrap it in a module that does."
        )
    return logits
