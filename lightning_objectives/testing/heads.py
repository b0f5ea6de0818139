"""Laws of the heads."""

import torch

from lightning_objectives._trainer.random import private_stream
from lightning_objectives.kinds import Head
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.signals import call, example_signals


def each_stack_has_the_shape_of_the_heads_logits(method: Head) -> None:
    """The stacks are (M, N, C) with M >= 1, for N of 1 and 6."""
    for rows in (1, 6):
        signals = example_signals(rows=rows)
        plain, shape = tuple(signals["head"](signals["features"]).shape), tuple(call(method, signals).shape)
        stacked = len(shape) == len(plain) + 1 and shape[0] >= 1 and shape[1:] == plain
        require(stacked, method, f"the stacks must have a dimension M before {plain}, not {shape}.")


def each_stack_uses_the_heads_weights(method: Head) -> None:
    """All stacks share the head: each sends a gradient to its weights."""
    signals = example_signals()
    weight = signals["head"].weight
    for number, stack in enumerate(call(method, signals)):
        gradient = None
        if stack.requires_grad:
            (gradient,) = torch.autograd.grad(stack.square().sum(), weight, retain_graph=True, allow_unused=True)
        used = gradient is not None and gradient.abs().sum() > 0
        require(used, method, f"stack {number} must be computed by the signal `head`, with its weights.")


def the_rows_are_independent(method: Head) -> None:
    """A change of the first sample changes the logits of no other sample."""
    signals = example_signals()
    before = call(method, signals)
    signals["features"][0] += 1.0
    after = call(method, signals)
    require(close(after[:, 1:], before[:, 1:]), method, "the logits of a sample must not depend on other samples.")


def the_features_of_the_stacks_give_the_stacks(method: Head) -> None:
    """The stacks are the head's logits of ``stacked_features``, with the same draws, where the method defines it."""
    if not hasattr(method, "stacked_features"):
        return
    signals = example_signals()
    with private_stream(0):
        stacks = call(method, signals)
    with private_stream(0):
        features = call(method.stacked_features, signals)
    logits = torch.stack([signals["head"](stack) for stack in features])
    require(close(logits, stacks), method, "the stacks must be the head's logits of stacked_features.")


def evaluation_is_the_plain_heads(method: Head) -> None:
    """In eval mode each stack holds the logits of the plain head."""
    signals = example_signals()
    was_training = method.training
    stacks = call(method.eval(), signals)
    method.train(was_training)
    plain = signals["head"](signals["features"]).expand_as(stacks)
    require(close(stacks, plain), method, "in eval mode each stack must hold the logits of the plain head.")
