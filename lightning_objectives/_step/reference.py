"""Asks the network of a training what it says of a batch with other weights, such as those of the start."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_objectives._files.names import plain_name, plainly_named
from lightning_objectives._step.calls import Call, Stacked
from lightning_objectives._step.capture import Capture
from lightning_objectives._step.extras import NAME
from lightning_objectives._step.frozen import logits_of
from lightning_objectives._step.head import path_of
from lightning_objectives._step.network import followed, network_call
from lightning_objectives._step.passes import Muted, unchanged_attributes, unchanged_state
from lightning_objectives._step.rows import fold
from lightning_objectives._step.step import Step
from lightning_objectives._trainer.random import Streams


def tensors_in(network: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a network, by the names in its state, without those that callbacks added."""
    tensors = plainly_named((*network.named_parameters(), *network.named_buffers()))
    return {name: tensor for name, tensor in tensors if NAME not in name.split(".")}


def logits_with(step: Step, tensors: Mapping[str, Tensor]) -> Tensor:
    """What the network would have returned in this step with these weights, in eval mode and without a trace.

    Raises:
        ValueError: the step calls its network several times, or not with its inputs.
    """
    network, module = step.plan.network, step.module
    call = network_call(step, like=network)
    if call is None:
        calls = len([c for c in step.plan.capture.network_calls if c.owner is network])
        raise ValueError(
            f"The reference runs the network once more as the step has called it, but {type(module).__name__}"
            f".training_step calls its network {calls} times, or not with the inputs of the batch. Call the network "
            "once, with tensors of the batch, or use a method that does not ask for its logits or losses."
        )
    prefix = "" if call.owner is network else f"{path_of(module, network)}."
    names = [name for name, _ in (*call.owner.named_parameters(), *call.owner.named_buffers())]
    inner = {name: plain_name(name).removeprefix(prefix) for name in names if plain_name(name).startswith(prefix)}
    weights = {name: tensors[plain] for name, plain in inner.items() if plain in tensors}
    streams = Streams(module.device)
    try:
        with (
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),  # Another mode would be another graph.
            Capture.closed(),
            Muted(module),
            _evaluating(call.owner),
            unchanged_state(call.owner),
            unchanged_attributes(call.owner),
        ):
            output = functional_call(call.owner, weights, call.args, call.kwargs)
    finally:
        streams.restore()
    return logits_of(output)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def compared(step: Step, logits: Tensor) -> Call:
    """The criterion's call of this step with a reference's logits in place of the network's.

    Raises:
        ValueError: what the step does to its logits before the criterion cannot be repeated.
    """
    call = step.call or step.user_call
    assert call is not None  # the engine catches the criterion for methods that ask
    if isinstance(call, Stacked):
        call = call.first
    with torch.no_grad():
        own = followed(step, logits)
    if own is None or own.shape != call.input.shape:
        raise ValueError(
            f"The reference's logits have the shape {tuple(logits.shape)}, and the criterion compares "
            f"{tuple(call.input.shape)}: what {type(step.module).__name__}.training_step does in between cannot be "
            "repeated. Casts, shapes, selections and arithmetic can; move anything else into the network."
        )
    replaced, compared = call.input, own.detach().requires_grad_()  # A named criterion shows its rows by gradients.
    return call.on(lambda tensor: compared if tensor is replaced else tensor)


def losses_of(step: Step, call: Call) -> Tensor:
    """(samples,) the mean loss of each sample in a call; 0 where no element counts."""
    valid = call.valid if step.counted is None else step.counted
    assert step.call is not None
    with torch.enable_grad():
        elements = call.elements.detach()
    rows = fold(elements, valid, step.samples(step.call, elements))
    if rows.kept is None:
        return rows.losses
    return rows.losses.new_zeros(rows.total).index_copy(0, rows.kept, rows.losses)


def state_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Copies of tensors that no training writes to."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
