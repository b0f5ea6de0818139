"""What penalties on the derivative by the inputs share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_objectives.shapes import check_shapes


@contextmanager
def differentiable(inputs: Tensor) -> Iterator[Tensor]:
    """Give inputs by which may be differentiated, with gradients recorded, and without the rounding of autocast.

    Raises:
        ValueError: whole numbers, such as tokens.
    """
    check_shapes(inputs=inputs)
    if not inputs.is_floating_point():
        raise ValueError(
            f"Inputs of {inputs.dtype} have no derivative: they must be floats. For tokens, use another method, or put "
            "the embedding before the network."
        )
    with torch.autocast(inputs.device.type, enabled=False), torch.enable_grad():
        yield inputs if inputs.requires_grad else inputs.detach().requires_grad_()


def square_of_gradient(inputs: Tensor, values: Callable[[Tensor], Tensor]) -> Tensor:
    """(N,) the squared norm of the derivative of the sum of ``values(inputs)`` by each row of the inputs.

    The sum, because the derivative of a mean over N rows would be N times too small.
    """
    with differentiable(inputs) as x:
        (gradient,) = torch.autograd.grad(values(x).sum(), x, create_graph=True)
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)).flatten(1).square().sum(1)
