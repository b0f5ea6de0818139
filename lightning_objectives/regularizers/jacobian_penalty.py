"""A penalty on the Jacobian of the logits by the inputs."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_objectives.kinds import Regularizer
from lightning_objectives.regularizers._inputs import square_of_gradient
from lightning_objectives.shapes import check_shapes


def jacobian_penalty(
    logits: Tensor,
    inputs: Tensor,
    again: Callable[..., Tensor],
    generator: torch.Generator | None = None,
    *,
    projections: int = 1,
) -> Tensor:
    r"""Compute half the squared norm of each sample's Jacobian, exactly or by random projections.

    .. math::
        \frac{1}{2} \|J_i\|_F^2 = \frac{1}{2} \sum_{k, d} \left( \frac{\partial z_{ik}}{\partial x_{id}} \right)^2
        \approx \frac{C}{2 n} \sum_{j=1}^{n} \left\| \nabla_{x_i} \langle v_{ij}, z_i \rangle \right\|^2

    with directions v that are uniform on the unit sphere. Their mean is the exact value.

    Args:
        logits: (N, C) of the step's own pass, whose number of classes counts.
        inputs: (N, ...) floats.
        again: calls the network once more, ``again(inputs)`` -> (N, C) logits; equal calls give equal logits.
        generator: where the directions are drawn from; None for the global stream.
        projections: n, the number of directions for each sample; 0 computes the exact value by C backward passes.

    Returns:
        (N,) terms >= 0, float32 at least.

    Raises:
        ValueError: inputs that are no floats, shapes that do not fit, or a negative number of projections.

    Example:
        >>> x, double = torch.zeros(1, 2), lambda inputs: 2 * inputs  # J = 2 I
        >>> jacobian_penalty(x, x, double, projections=0)
        tensor([4.])
    """
    _check(projections)
    check_shapes(logits=logits, inputs=inputs)
    rows, classes = logits.shape
    if projections:
        device = generator.device if generator is not None else inputs.device
        shape = (projections, rows, classes)
        drawn = torch.randn(shape, generator=generator, device=device).to(inputs.device, non_blocking=True)
        directions = drawn / drawn.norm(dim=2, keepdim=True).clamp_min(torch.finfo(drawn.dtype).tiny)
    else:
        directions = torch.eye(classes, device=inputs.device)[:, None].expand(-1, rows, -1)

    def projected(direction: Tensor, x: Tensor) -> Tensor:
        z = again(x)
        return z * direction.to(z.dtype)

    squares = torch.stack([square_of_gradient(inputs, partial(projected, direction)) for direction in directions])
    return squares.sum(0) * (classes / projections if projections else 1.0) / 2


def _check(projections: int) -> None:
    if projections < 0:
        raise ValueError(f"projections={projections} must be >= 0; 0 computes the exact value.")


class JacobianPenalty(Regularizer):
    r"""Keeps the logits from changing much under small changes of the inputs; needs no labels.

    The terms are those of :func:`jacobian_penalty`. The callback multiplies them by 0.01 if you give no ``strength``.

    Args:
        projections: n, the number of random directions for each sample. The paper finds 1 enough. 0 computes the exact
            value, with a pass for each class.

    Raises:
        ValueError: a negative number of projections; in a training, inputs that are no floats.

    When to use: for robustness to noise and small changes of the inputs, and for wider margins.
    Cost: for each projection one more forward pass, and two backward passes through it.
    Interactions: the network must have a second derivative, which a compiled network and some fused attention do not.
    With ReLU the second derivative is that of the pieces. BatchNorm couples the samples of the pass, and keeps the
    statistics of the step's own pass. All passes share one dropout mask. The right strength depends on the scale of the
    inputs.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> JacobianPenalty(projections=0)(x, x, lambda inputs: 3 * inputs).detach()
        tensor([9.])

    Paper: Hoffman et al., Robust Learning with Jacobian Regularization, 2019, algorithm 1,
    https://arxiv.org/abs/1908.02729. Not checked at the source: the strength of 0.01.
    """

    function = staticmethod(jacobian_penalty)
    family = "robustness"
    default_strength = 0.01
    by_process = "each process draws the directions of its own rows"

    def __init__(self, *, projections: int = 1) -> None:
        super().__init__()
        _check(projections)
        self.projections = projections

    def forward(
        self, logits: Tensor, inputs: Tensor, again: Callable[..., Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """(N, C) logits, (N, ...) inputs and further passes over them -> (N,) terms."""
        return jacobian_penalty(logits, inputs, again, generator, projections=self.projections)
