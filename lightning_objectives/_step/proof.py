"""The proof, on the first batch, that a plug-in has an effect, and the one that was meant."""

from collections.abc import Sequence

from torch import Tensor

from lightning_objectives._step.criterion import Call
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
    """Prove that the criterion was caught, that it is the loss, and that its input comes from the head.

    Args:
        loss: what the step returned.
        calls: the criteria that it called on tensors that need a gradient.
        value: what was given back for the one that was taken.
        which: the number that was asked for.
        head: the head's output, where it is tapped and not wrapped: stacks are a proof of their own.
        user: the name of the user's class.
        plan: what was to happen, in words.

    Raises:
        ValueError: one of them does not hold; the message says what to name.
    """
    step = f"{user}.training_step"
    names = [f"{i}: {getattr(c.function, '__name__', c)} of {tuple(c.input.shape)}" for i, c in enumerate(calls)]
    seen = ", ".join(names)
    if not calls:
        raise ValueError(
            f"No criterion was seen in {step}, so that {plan} would have no effect. Caught are torch's cross_entropy, "
            "nll_loss, binary_cross_entropy(_with_logits) and mse_loss on tensors that need a gradient; name any other "
            "with criterion='path.to.it'."
        )
    if which is None and len(calls) > 1:
        raise ValueError(f"{step} calls several criteria ({seen}); say which=0, 1, ...")
    if value is None:
        raise ValueError(f"which={which}, but {step} calls these criteria: {seen}.")
    if not is_affine_in(loss, value):
        raise ValueError(
            f"The loss that {step} returns is not the criterion's value up to scale and added terms ({seen}): the "
            "criterion is only a part of it, or not in it. Name the whole of it with criterion='path.to.it'."
        )
    if head is not None and not came_from(calls[which or 0].input, head):
        raise ValueError(
            "The criterion's input does not come from the head alone; name the module that gives the logits with "
            f"head=. The plan: {plan}."
        )
