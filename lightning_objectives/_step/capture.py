"""Shows the calls of the head, the criterion and the network during a step of the user's, training or evaluation."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torch.overrides import TorchFunctionMode

from lightning_objectives._step.arguments import loss_in
from lightning_objectives._step.calls import CRITERIA, Call, parse
from lightning_objectives._step.compiled import is_compiled
from lightning_objectives._step.named import Named
from lightning_objectives._step.taps import Tap
from lightning_objectives._step.trace import Trace
from lightning_objectives._trainer.patch import ClassPatch, Patch


class Listener(Protocol):
    """What is told of the calls during one step."""

    def on_call(self, call: Call) -> Tensor:
        """The criterion is called; the answer is its value for the user's code."""

    def on_head(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The head is called; the answer is its output for the user's code."""


@dataclass(frozen=True, eq=False)
class NetworkCall:
    """One call of the network: what it got, masks and keywords included, and what it returned."""

    owner: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class CriterionMode(TorchFunctionMode):
    """Replaces the calls of torch's criteria by ``on_call``, and shows all other calls to a trace."""

    def __init__(self, on_call: Callable[[Call], Tensor] | None, trace: Trace | None = None) -> None:
        super().__init__()
        self.on_call = on_call
        self.trace = trace or Trace()
        # What is recorded differs from step to step, so a graph of torch.compile must not depend on it.
        self._follow = torch.compiler.disable(self.trace.follow)  # type: ignore[no-untyped-call]  # torch
        self.reads = False
        """Whether the mode only notes the criteria's calls, which does not break a graph of torch.compile."""
        self.whole = False
        """Whether it also notes those in a graph of torch.compile: their value is the loss, and can be replaced."""
        self.notes: list[tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch calls this for every torch function of the user's step."""
        kwargs = kwargs or {}
        if func is l1_loss and not torch.compiler.is_compiling():
            kwargs = {**kwargs, **_dropped()}
        # The order matters to torch.compile: a network then does not depend on these flags, and a step not on `reads`,
        # so that each is compiled only once.
        noted = func in CRITERIA and ((self.whole and torch.compiler.is_compiling()) or self.reads)
        if func in CRITERIA and self.on_call is not None and not noted:
            return self.on_call(parse(func, args, kwargs))
        result = func(*args, **kwargs)
        if noted:
            self.notes.append((func, args, kwargs, result))
        # The batch alone is not followed into a graph of torch.compile, which would depend on what follows it.
        if self.trace.has_output or (not torch.compiler.is_compiling() and self.trace.active):
            self._follow(func, args, kwargs, result)
        return result

    def noted_calls(self) -> list[tuple[Call, Tensor]]:
        """The noted calls that a gradient flows through, each with its value."""
        calls = [(parse(function, args, kwargs), value) for function, args, kwargs, value in self.notes]
        return [(call, value) for call, value in calls if call.input.requires_grad and value.requires_grad]


def _dropped() -> dict[str, Any]:
    """The argument that torch drops when it hands the running call of ``l1_loss`` to a mode: its ``weight``."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code is not l1_loss.__code__:
        frame = frame.f_back
    weight = frame.f_locals.get("weight") if frame.f_code is l1_loss.__code__ else None
    return {} if weight is None else {"weight": weight}


class Capture:
    """Patches what a step calls, and tells a listener of the calls while it listens.

    Args:
        module: the LightningModule.
    """

    _closed: ClassVar[bool] = False
    """Whether a network is being repeated; no capture may take that for a call of the user's step."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.trace = Trace()
        self.mode: CriterionMode | None = None
        self.named: Named | None = None
        self.network_calls: list[NetworkCall] = []
        self.on_recompute: Callable[..., Any] | None = None
        """Computes the head again, in a further pass or when the backward pass recomputes a checkpointed part; None for
        the head alone."""
        self.taps: list[Tap] = []
        """The layers whose outputs are kept."""
        self.changes: dict[Tap, Callable[[Any], Any]] = {}
        """What the layers return in place of their outputs, in this step and where a part of it runs again."""
        self._listener: Listener | None = None
        self._records_module = self._repeats = False
        self._in_term = False
        """Whether a criterion runs that is a term of the loss: what it calls is a part of it."""
        self._patches: list[Patch | ClassPatch] = []

    def remove(self) -> None:
        """Remove all patches; does nothing the second time."""
        while self._patches:
            self._patches.pop().remove()

    def criterion(self, path: str | None, *, mode: bool = True) -> None:
        """Catch torch's criteria, or the one that the user names by its path.

        Args:
            path: the path of the criterion; None for torch's own.
            mode: whether to follow torch's functions under a named criterion too, as a trace needs it.
        """
        if path is not None:
            self.named = Named(self.module, path)
            self._patches.append(self.named.patch(self._named_criterion))
        if mode or path is None:
            # A change differs from step to step, so a compiled step must leave its graph here, once.
            on_call = None if path is not None else torch.compiler.disable(self._caught)  # type: ignore[no-untyped-call]  # torch
            self.mode = CriterionMode(on_call, self.trace)

    def terms(self, paths: Sequence[str]) -> None:
        """Catch criteria that are terms of the loss, by their paths.

        Raises:
            ValueError: there is nothing callable under a path, or it is the criterion that callbacks act on.
        """
        for path in dict.fromkeys(paths):
            if self.named is not None and path == self.named.path:
                raise ValueError(
                    f"criterion={path!r} is a term of the loss already. Leave it out of criteria={list(paths)}."
                )
            named = Named(self.module, path)
            # Its gate differs from step to step, so a compiled step must leave its graph here.
            around = torch.compiler.disable(partial(self._term, named))  # type: ignore[no-untyped-call]  # torch
            self._patches.append(named.patch(around))

    def head(self, head: nn.Module) -> Patch:
        """Tap a head."""
        # The patch stores new tensors in each step, so torch.compile would compile it again in each.
        patch = Patch(head, "forward", torch.compiler.disable(self._head))  # type: ignore[no-untyped-call]  # torch
        self._patches.append(patch)
        return patch

    def layer(self, tap: Tap) -> None:
        """Keep what a layer returns in each pass."""
        self.taps.append(tap)
        # What is kept differs from pass to pass, and torch.compile must not depend on it.
        kept = torch.compiler.disable(partial(self._layer, tap))  # type: ignore[no-untyped-call]  # torch
        self._patches.append(Patch(tap.layer, "forward", kept))

    def network(self, network: nn.Module) -> None:
        """Record the calls of a network."""
        if network is self.module:
            self._records_module = True
            return
        # A network that is compiled in place runs this attribute, and its `forward` only inside the graph.
        compiled = "_compiled_call_impl" if getattr(network, "_compiled_call_impl", None) is not None else "forward"
        self._patches.append(Patch(network, compiled, partial(self._network, network)))

    @contextmanager
    def listening(self, listener: Listener, mode: AbstractContextManager[Any] | None = None) -> Iterator[None]:
        """Tell a listener of all calls in the body, which runs in ``mode``."""
        self._listener, self.network_calls = listener, []
        for tap in self.taps:
            tap.outputs.clear()
        # Only while a step runs: under DDP, Lightning exchanges the module's `forward` around each step.
        patch = Patch(self.module, "forward", partial(self._network, self.module)) if self._records_module else None
        try:
            with self.mode or nullcontext() if mode is None else mode:
                yield
        finally:
            self._listener = None
            if patch is not None:
                patch.remove()

    def begin(self) -> None:
        """Forget how the parts of the pass before run again."""
        self.on_recompute = None
        self.changes.clear()

    def forget(self) -> None:
        """Drop all tensors of a step."""
        self.trace.stop()
        self.network_calls = []
        for tap in self.taps:
            tap.outputs.clear()
        if self.mode is not None:
            self.mode.notes.clear()

    @staticmethod
    @contextmanager
    def closed() -> Iterator[None]:
        """Tell no listener of the calls in the body."""
        before, Capture._closed = Capture._closed, True
        try:
            yield
        finally:
            Capture._closed = before

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Tell no listener of the calls in the body, where a wrapped head is called as the step has called it."""
        self._repeats = True
        try:
            with self.closed():
                yield
        finally:
            self._repeats = False

    @property
    def _live(self) -> Listener | None:
        return None if Capture._closed else self._listener

    def _caught(self, call: Call) -> Tensor:
        return call.value() if self._live is None or self._in_term else self._live.on_call(call)

    def _term(self, named: Named, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outermost, self._in_term = not self._in_term, True
        try:
            result = inner(*args, **kwargs)
        finally:
            self._in_term = not outermost
        if self._live is None or not outermost:
            return result
        value, rebuild = loss_in(result, named.path)
        criteria = cast(Any, self._live).criteria  # Of all listeners a training step alone has terms.
        return result if criteria is None or not value.requires_grad else rebuild(criteria.gated(named.path, value))

    def _named_criterion(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        listener, named = self._live, self.named
        if listener is None or named is None:
            return inner(*args, **kwargs)
        notes = CriterionMode(None)
        notes.reads = True
        compiled = isinstance(named.criterion, nn.Module) and is_compiled(named.criterion)
        with nullcontext() if compiled else notes:
            result = inner(*args, **kwargs)
        value, rebuild = loss_in(result, named.path)
        call: Call
        if len(notes.notes) == 1 and notes.notes[0][3] is value:  # It is one of torch's criteria under another name.
            call = parse(*notes.notes[0][:3])
        else:
            function = inner  # Other patches of this criterion must see the user's own call only.
            while isinstance(function, Patch):
                function = function.inner
            call = named.call(function, args, kwargs, value)
        with torch._C.DisableTorchFunction():
            changed = listener.on_call(call)
        return result if changed is value else rebuild(changed)

    def _head(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._live is not None:
            return self._live.on_head(inner, args, kwargs)
        if self.on_recompute is not None and self._runs_again:
            return self.on_recompute(inner, *args, **kwargs)
        return inner(*args, **kwargs)

    @property
    def _runs_again(self) -> bool:
        """Whether a part of the step runs once more: in a further pass, or in the backward pass if checkpointed."""
        return self._repeats or (torch._C._current_graph_task_id() != -1 and not Capture._closed)

    def _layer(self, tap: Tap, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        if tap in self.changes and (self._live is not None or self._runs_again):
            output = self.changes[tap](output)
        if self._live is not None:
            tap.outputs.append(output)
        return output

    def _network(self, owner: nn.Module, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        if self._live is not None:
            self.network_calls.append(NetworkCall(owner, args, kwargs, output))
        return output
