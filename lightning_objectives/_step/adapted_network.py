"""Lets an adapter act on a network: on its statistics, its predictions and its weights, which come back to the bit."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_objectives._step.batch import detached
from lightning_objectives._step.capture import Capture
from lightning_objectives._step.frozen import Frozen
from lightning_objectives._step.teacher import rows_of
from lightning_objectives._trainer.patch import Patch
from lightning_objectives.kinds import Adapter


class HeadCall(NamedTuple):
    """One call of the head."""

    features: Tensor
    """What it got."""
    logits: Tensor
    """What it returned."""
    returned: Tensor
    """What the user's code got in place of that."""


class AdaptedNetwork:
    """Patches the calls of a network while a step of the user's runs, and owns the weights that an adapter moves.

    Args:
        network: the network.
        head: turns features into logits; None for an adapter that needs no logits.
        adapter: the method.
        reference: another network, whose logits the adapter asks for; None for an adapter that does not.
    """

    def __init__(
        self, network: nn.Module, head: nn.Module | None, adapter: Adapter, reference: Frozen | None = None
    ) -> None:
        self.network = network
        self.head = head
        self.adapter = adapter
        self.reference = reference
        self.network_calls = 0
        """How often the step called the network."""
        self.output: Any = None
        """What the network returned in the step's last call."""
        self.head_calls: list[HeadCall] = []
        self._updates = adapter.defines("update")
        self._again: Callable[[], Any] | None = None
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
        """Those of the network's last call."""
        self._dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.get_default_dtype())
        """That of the weights: the logits are of another under autocast."""
        self._inside = False
        """Whether the network is running. What other parts of the user's module compute stays as it is."""
        self._layers = [part for part in network.modules() if isinstance(part, _BatchNorm)]
        self.params = adapter.adapts(network) if self._updates else {}
        self._source = {name: parameter.detach().clone() for name, parameter in self.params.items()}
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._state: dict[str, Any] = {}
        if self._updates:
            # Other weights must cost neither a gradient nor the memory for one.
            self._flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
            moved = {id(parameter) for parameter in self.params.values()}
            for parameter, _ in self._flags:
                parameter.requires_grad_(id(parameter) in moved)

    # -- weights -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self) -> None:
        """Put the weights back, and begin anew."""
        for name, parameter in self.params.items():
            parameter.copy_(self._source[name])
        self._state = self.adapter.init(self.params) if self._updates else {}

    def restore(self) -> None:
        """Give the network back as it was found."""
        with torch.no_grad():
            for name, parameter in self.params.items():
                parameter.copy_(self._source[name])
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        for parameter in self.params.values():
            parameter.grad = None  # Lightning has removed all gradients before a test.
        self._flags, self._state, self.params = [], {}, {}
        self.forget()

    def source_by_place(self) -> dict[int, Tensor]:
        """The weights as they were, by the address of the tensors that the adapter moves."""
        return {parameter.data_ptr(): self._source[name] for name, parameter in self.params.items()}

    def update(self) -> None:
        """Let the adapter move its parameters, by the only call of the head in this step."""
        (call,) = self.head_calls
        with torch.enable_grad():
            self.adapter.update(self._columns(call.logits), call.features, self.params, self._state, again=self._repeat)

    def _repeat(self) -> tuple[Tensor, Tensor]:
        """Run the network on the batch once more, at the weights as they are now."""
        assert self._again is not None  # an update comes after a call of the network
        self.head_calls = []
        torch.clear_autocast_cache()  # It may hold half-precision copies of weights that have moved.
        with Capture.closed(), self._patched():
            self._again()
        (call,) = self.head_calls
        return self._columns(call.logits), call.features

    # -- calls ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let the adapter act on the calls of the network in the body."""
        self.forget()
        # Only now: under DDP, Lightning exchanges the `forward` of the module around a step.
        network = Patch(self.network, "forward", self._call)
        try:
            with self._patched():
                yield
        finally:
            network.remove()

    def forget(self) -> None:
        """Drop all tensors of a step."""
        self.network_calls, self.output, self.head_calls, self._again = 0, None, [], None
        self._arguments = (), {}

    @contextmanager
    def _patched(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.adapter.defines("statistics"):
                for layer in self._layers:
                    stack.callback(Patch(layer, "forward", partial(self._normalize, layer)).remove)
            if self.head is not None:
                stack.callback(Patch(self.head, "forward", self._on_head, innermost=True).remove)
            yield

    def _call(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the network; its output has no gradient for the user's code, as in any test."""
        self.network_calls += 1
        self._arguments = args, kwargs
        if self._updates:
            self._again = partial(self._run, inner, args, kwargs)
        output = self._run(inner, args, kwargs)
        self.output = detached(output) if self._updates else output
        return self.output

    def _run(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, self._inside = self._inside, True
        try:
            with torch.enable_grad() if self._updates else nullcontext():
                return inner(*args, **kwargs)
        finally:
            self._inside = before

    def _normalize(self, layer: _BatchNorm, inner: Callable[..., Any], inputs: Tensor) -> Any:
        """Run a BatchNorm layer with other statistics in the place of its running ones.

        The layer's own forward runs, because subclasses do more in it: those of timm apply an activation too.
        """
        if not self._inside:
            return inner(inputs)
        buffers, mean, var = layer._buffers, layer.running_mean, layer.running_var
        statistics = self.adapter.statistics(inputs, mean, var)
        buffers["running_mean"], buffers["running_var"] = (None, None) if statistics is None else statistics
        try:
            return inner(inputs)
        finally:
            buffers["running_mean"], buffers["running_var"] = mean, var

    def _on_head(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        logits = inner(*args, **kwargs)
        if not self._inside:
            return logits
        features = args[0] if args else None
        if not (isinstance(features, Tensor) and isinstance(logits, Tensor) and logits.dim() <= 2):
            what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"{self.adapter} needs a head that turns features (N, D) into logits (N, C), but "
                f"{type(self.head).__name__} returned {what}. Name another module with head=, or use an adapter that "
                "needs no logits, such as one of BatchNorm's statistics."
            )
        returned = logits
        if self.adapter.defines("predict"):
            new = self.adapter.predict(**self._signals(logits.detach(), features.detach()))
            returned = (new[:, 1] - new[:, 0]).reshape(logits.shape) if self._is_column(logits) else new
        self.head_calls.append(HeadCall(features, logits, returned))
        return returned

    def _signals(self, logits: Tensor, features: Tensor) -> dict[str, Tensor]:
        """What the adapter predicts from, by name."""
        signals = {"logits": self._columns(logits), "features": features}
        names = self.adapter.predicts_from()
        if "reference_logits" in names:
            assert self.reference is not None  # the callback refuses an adapter without one
            args, kwargs = self._arguments
            with Capture.closed():
                answer = self.reference(*args, dtype=self._dtype, **kwargs)
            own = logits if logits.dim() > 1 else logits[:, None]
            rows = rows_of(answer.logits, own, names=("reference", "tested network"))
            signals["reference_logits"] = self._columns(rows)
        return {name: signals[name] for name in names}

    def _is_column(self, logits: Tensor) -> bool:
        """Whether there is one logit for two classes, for a method of classes."""
        return bool(self.adapter.problems) and (logits.dim() < 2 or logits.shape[1] == 1)

    def _columns(self, logits: Tensor) -> Tensor:
        """The logits of each class: one logit z of two classes as (0, z)."""
        if not self._is_column(logits):
            return logits
        column = logits.reshape(-1, 1)
        return torch.cat([torch.zeros_like(column), column], 1)
