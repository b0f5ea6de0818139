"""Repeats the criterion's call on the M stacks of a wrapped head, and the head itself."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_objectives._step import chunks
from lightning_objectives._step.calls import Call, Derived, Stacked
from lightning_objectives._step.member import Member
from lightning_objectives._step.trace import Node, Replay, Trace
from lightning_objectives.signals import signals_of


class OneByOne(NamedTuple):
    """Stacks that are too large to be held together."""

    features: Tensor
    """(M, N, ..., D) what the head gets in each stack."""
    head: nn.Module


def stacked(member: Member, signals: Mapping[str, Any]) -> tuple[Tensor, Tensor | OneByOne]:
    """The mean of the stacks of a wrapped head, for the user's code, and the stacks, or what they are computed from."""
    large = _one_by_one(member, signals)
    if large is not None:
        return large.head(large.features.mean(0)), large
    stacks = member.stacks(signals)
    return stacks.mean(0), stacks


def _one_by_one(member: Member, signals: Mapping[str, Any]) -> OneByOne | None:
    """The features of the stacks of a wrapped head, if their logits are large; None if they are to be computed at once.

    Only of a linear head, whose mean of the stacks is the output for the mean of the features.
    """
    head, features = signals["head"], getattr(member.method, "stacked_features", None)
    if features is None or type(head) is not nn.Linear:
        return None
    if signals["features"].shape[:-1].numel() * head.out_features < chunks.LARGE:
        return None
    return OneByOne(features(**{name: signals[name] for name in signals_of(features)}), head)


def repeated(member: Member, signals: Mapping[str, Any]) -> Callable[..., Tensor]:
    """Computes a wrapped head once more: in a further pass, or in the backward pass for a checkpoint around the head.

    Args:
        member: the callback that wraps the head.
        signals: what it got in the step; a generator begins anew.
    """
    others = {name: value for name, value in signals.items() if name != "features"}
    drawn = signals["generator"].get_state() if "generator" in signals else None

    def head(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        (features,) = (*args, *kwargs.values())
        if drawn is not None:
            others["generator"].set_state(drawn)
        return member.stacks({**others, "features": features}).mean(0)

    return head


def on_stacks(call: Call, stacks: Tensor | OneByOne | None, trace: Trace, head: str) -> Call:
    """The call on each stack in place of the head's output, with what the user's code does to it on the way.

    Args:
        call: the call on the head's output.
        stacks: the stacks (M, N, ...), or what they are computed from one by one; None if the head was not called.
        trace: what was recorded of the way from the head's output.
        head: the path of the head, for messages.

    Raises:
        ValueError: the input does not come from the head, or an operation on the way cannot be repeated.
    """
    output, found = trace.output, False
    nodes: dict[int, Node | None] = {}  # A stack that is computed again comes after the trace has ended.

    def substitute(replay: Replay, tensor: Tensor) -> Tensor:
        nonlocal found
        if id(tensor) not in nodes:
            nodes[id(tensor)] = trace.node_of(tensor)
        node = nodes[id(tensor)]
        if node is None or node.of_batch:
            return tensor
        if node.obstacle is not None:
            raise ValueError(
                f"The stacks cannot follow the logits from the head {head!r} to the loss: in between, your code "
                f"applies {node.obstacle!r}, which cannot be repeated on each stack. Casts, shapes, selections, "
                "arithmetic and link functions can. Pass `head=` with a module that lies after that operation."
            )
        found = True
        result: Tensor = replay(node)
        return result

    def on_stack(stack: Tensor) -> Call:
        changed = call.on(partial(substitute, Replay(output, stack))) if output is not None else call
        if not found:
            raise ValueError(
                f"The criterion's input does not come from the head {head!r} by operations that the stacks can follow. "
                "Name the head with head=, or the criterion's call with which=."
            )
        return changed

    if isinstance(stacks, OneByOne):
        return ByStack(call, [partial(_of_features, on_stack, stacks.head, row) for row in stacks.features])
    return Stacked([on_stack(stack) for stack in ([call.input] if stacks is None else stacks)])


def _of_features(on_stack: Callable[[Tensor], Call], head: nn.Module, features: Tensor) -> Call:
    return on_stack(head(features))


class ByStack(Derived):
    """Stands for one call on each stack of a head, which is computed when it is needed, and again in the backward pass.

    Args:
        first: the call on the mean of the stacks.
        calls: makes the call on each stack.
    """

    def __init__(self, first: Call, calls: Sequence[Callable[[], Call]]) -> None:
        super().__init__(first)
        self.calls = calls

    def _mean_of(self, take: Callable[[Call], Tensor]) -> Tensor:
        def computed(call: Callable[[], Call]) -> Tensor:
            return take(call())

        kept: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing is drawn in it
        return torch.stack([checkpoint(computed, call, **kept) for call in self.calls]).mean(0)

    @property
    def logits(self) -> Tensor:
        """(rows, C) the mean of the logits of the stacks."""
        return self._mean_of(lambda call: call.logits)

    def value(self) -> Tensor:
        """The mean of the values."""
        return self._mean_of(lambda call: call.value())

    @cached_property
    def elements(self) -> Tensor:
        """The mean of the unreduced losses."""
        return self._mean_of(lambda call: call.elements)

    def on(self, substitute: Callable[[Tensor], Tensor]) -> Call:
        """The same calls with other tensors."""
        return self._changed(lambda call: call.on(substitute))

    def with_targets_of(self, rows: Tensor) -> Call:
        """The same calls with the targets of other rows."""
        return self._changed(lambda call: call.with_targets_of(rows))

    def _changed(self, change: Callable[[Call], Call]) -> Call:
        def changed(call: Callable[[], Call]) -> Call:
            return change(call())

        return ByStack(change(self.first), [partial(changed, call) for call in self.calls])
