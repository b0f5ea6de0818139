"""Proves on the first batch that the plan of a step has its effect, and the one that the user means."""

from collections.abc import Sequence

from torch import Tensor

from lightning_objectives._step.calls import CAUGHT, Call
from lightning_objectives._step.graph import came_from, is_affine_in


def prove(
    loss: Tensor,
    calls: Sequence[Call],
    value: Tensor | None,
    which: int | None,
    head: Tensor | None,
    user: str,
    plan: str,
) -> None:
    """Prove that the engine caught the criterion, that it is the loss, and that its input comes from the head.

    Args:
        loss: what the step returned.
        calls: the calls of criteria on tensors that need a gradient.
        value: what the user's code got for the call that it changed or read; None if it did for none.
        which: the number of the call that the user chose.
        head: the head's output if it is tapped and not wrapped, because stacks are a proof of their own; else None.
        user: the name of the user's class.
        plan: what must happen, in words.

    Raises:
        ValueError: one of the three is not so; the message says what to name.
    """
    step = f"{user}.training_step"
    names = [f"{i}: {call.name} of {tuple(call.input.shape)}" for i, call in enumerate(calls)]
    listed = ", ".join(names)
    if not calls:
        raise ValueError(
            f"No criterion was seen in {step}, so {plan} would have no effect. Torch's {CAUGHT} are seen by "
            "themselves, on tensors that need a gradient. Name any other criterion with criterion='path.to.it'."
        )
    if which is None and len(calls) > 1:
        raise ValueError(
            f"{step} calls several criteria ({listed}), and {plan} can act on one of them only; say which=0, 1, ..."
        )
    if value is None:
        raise ValueError(f"which={which}, but {step} calls only these criteria: {listed}. Choose one of their numbers.")
    if not is_affine_in(loss, value):
        raise ValueError(
            f"The loss that {step} returns is not the criterion's value ({listed}) up to a scale and added terms: the "
            "criterion is only a part of it, or not in it, so the effect of a change would be unknown. Name a function "
            "that computes the whole loss with criterion='path.to.it'."
        )
    if head is not None and not came_from(calls[which or 0].input, head):
        raise ValueError(
            f"The criterion's input does not come from the head alone, which {plan} relies on. Name the module that "
            "computes the logits with head=."
        )
