"""Finds how a step calls its network, so that another network can be called alike, and what follows its output."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._step.batch import tensors_of
from lightning_objectives._step.capture import NetworkCall
from lightning_objectives._step.frozen import logits_of
from lightning_objectives._step.step import Step
from lightning_objectives._step.trace import Replay


def network_call(step: Step, like: nn.Module) -> NetworkCall | None:
    """How a step calls its network, for another network that is to be called alike.

    That is the call of the network, or of the whole module, which a network ``like`` the module takes first: the only
    one of this step, with tensors of the batch, or tensors of their shape that no parameter has changed. None if there
    is no such call.
    """
    tensors = list(tensors_of(step.user_batch))
    owners = [step.plan.network, step.module]
    if isinstance(like, type(step.module)):
        owners.reverse()
    for owner in owners:
        calls: list[NetworkCall] = [call for call in step.plan.capture.network_calls if call.owner is owner]
        if len(calls) == 1 and _takes_inputs(calls[0], tensors):
            return calls[0]
    return None


def _takes_inputs(call: NetworkCall, tensors: list[Tensor]) -> bool:
    """Whether a network was called with inputs, and not with features that another part of the module computed."""
    leaves = [leaf for value in (*call.args, *call.kwargs.values()) for leaf in tensors_of(value)]
    if any(leaf.requires_grad for leaf in leaves):
        return False
    shapes = {tensor.shape for tensor in tensors}
    return any(leaf is tensor for leaf in leaves for tensor in tensors) or any(leaf.shape in shapes for leaf in leaves)


def followed(step: Step, logits: Tensor) -> Tensor | None:
    """Do to another network's logits what the user's code does to its own on the way to the criterion.

    None if that is unknown, or if the two have different shapes.
    """
    if step.user_call is None:
        return None
    trace, input = step.plan.capture.trace, step.user_call.input
    goal = trace.node_of(input)
    outputs = [_logits_in(call.output) for call in step.plan.capture.network_calls]
    start = next((trace.node_of(output) for output in outputs if output is not None), trace.output)
    if goal is not None and goal.obstacle is None and start is not None and start.tensor.shape == logits.shape:
        with torch.no_grad():
            result: Tensor = Replay(start, logits)(goal)
        return result
    return logits if logits.shape == input.shape else None


def _logits_in(output: Any) -> Tensor | None:
    """The logits in a network's output; None if there are none."""
    try:
        return logits_of(output)
    except ValueError:
        return None
