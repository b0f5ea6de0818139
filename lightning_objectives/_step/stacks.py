"""Repeats the criterion's call on the M stacks of a wrapped head, and the head itself."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from lightning_objectives._step.calls import Call, Stacked
from lightning_objectives._step.member import Member
from lightning_objectives._step.trace import Replay, Trace


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


def on_stacks(call: Call, stacks: Tensor | None, trace: Trace, head: str) -> Stacked:
    """The call on each stack in place of the head's output, with what the user's code does to it on the way.

    Args:
        call: the call on the head's output.
        stacks: (M, N, ...) the stacks; None if the head was not called.
        trace: what was recorded of the way from the head's output.
        head: the path of the head, for messages.

    Raises:
        ValueError: the input does not come from the head, or an operation on the way cannot be repeated.
    """
    output, found = trace.output, False

    def substitute(replay: Replay, tensor: Tensor) -> Tensor:
        nonlocal found
        node = trace.node_of(tensor)
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

    replays = [Replay(output, stack) for stack in stacks] if output is not None and stacks is not None else []
    calls = [call.on(partial(substitute, replay)) for replay in replays]
    if not found:
        raise ValueError(
            f"The criterion's input does not come from the head {head!r} by operations that the stacks can follow. "
            "Name the head with head=, or the criterion's call with which=."
        )
    return Stacked(calls)
