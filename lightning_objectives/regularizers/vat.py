"""Virtual adversarial training."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_shapes


def adversarial_direction(
    inputs: Tensor,
    again: Callable[..., Tensor],
    *,
    generator: torch.Generator | None = None,
    xi: float = 1e-2,
    iterations: int = 1,
) -> Tensor:
    r"""Find the direction in which a small step of the inputs changes the prediction most, without labels.

    The direction begins as a draw d of length 1 for each sample. Each iteration replaces it by the gradient of the
    change, brought to length 1:

    .. math::
        d \leftarrow \frac{g}{\|g\|_2}, \quad g = \nabla_d D_{KL}(p(x) \| p(x + \xi d))

    which is one step of the power method for the largest eigenvector of the Hessian of :math:`D_{KL}`.

    Args:
        inputs: (N, ...) floats.
        again: calls the network once more, ``again(inputs)`` -> (N, C) logits; equal calls give equal logits.
        generator: where d is drawn from; None for the global stream.
        xi: :math:`\xi`, the length of the trial step. Far below 1e-4 of the inputs' scale, float32 holds noise only.
        iterations: how often d is improved.

    Returns:
        (N, ...) directions without gradient, of length 1 for each sample. Where the gradient is 0, d stays.

    Raises:
        ValueError: inputs that are no floats, or have fewer than 32 bits; a bad setting.

    Example:
        >>> points = torch.tensor([[0.0, 0.0]])
        >>> line = lambda inputs: torch.stack([inputs[:, 0], -inputs[:, 0]], 1)  # The second number means nothing.
        >>> adversarial_direction(points, line, generator=torch.Generator().manual_seed(0)).abs()
        tensor([[1., 0.]])
    """
    _check(xi, iterations)
    check_shapes(inputs=inputs)
    if not inputs.is_floating_point() or inputs.dtype.itemsize < 4:
        raise ValueError(
            f"Inputs of {inputs.dtype} cannot be moved by small steps: they must be float32 or float64. Give whole "
            "numbers (tokens) to another method, and train in float32 or mixed precision."
        )
    inputs = inputs.detach()
    device = generator.device if generator is not None else inputs.device
    draw = torch.randn(inputs.shape, generator=generator, device=device, dtype=inputs.dtype)
    direction = _unit(draw.to(inputs.device, non_blocking=True))
    # In half precision the trial step would be lost in the rounding of the inputs.
    with torch.autocast(inputs.device.type, enabled=False), torch.enable_grad():
        with torch.no_grad():
            p = again(inputs).softmax(1)
        for _ in range(iterations):
            step = direction.requires_grad_()
            change = _divergence(p, again(inputs + xi * step)).sum()
            (gradient,) = torch.autograd.grad(change, step)
            direction = _unit(gradient, otherwise=step.detach())
    return direction


def virtual_adversarial_loss(
    inputs: Tensor,
    again: Callable[..., Tensor],
    generator: torch.Generator | None = None,
    *,
    eps: float = 8.0,
    xi: float = 1e-2,
    iterations: int = 1,
) -> Tensor:
    r"""Compute how much the prediction changes under the worst small step of the inputs, without labels.

    .. math::
        D_{KL}(p(x) \| p(x + \epsilon d))

    with the softmax probabilities p and the direction d of :func:`adversarial_direction`. :math:`p(x)` and d are
    constants for the gradient.

    Args:
        inputs: (N, ...) floats.
        again: calls the network once more, ``again(inputs)`` -> (N, C) logits; equal calls give equal logits, so that
            dropout drops the same and does not count as a change.
        generator: where the first direction is drawn from; None for the global stream.
        eps: :math:`\epsilon`, the length of the step for each sample, in the units of the inputs.
        xi: the length of the trial step that finds the direction.
        iterations: how often the direction is improved.

    Returns:
        (N,) divergences >= 0.

    Raises:
        ValueError: inputs that are no floats, or have fewer than 32 bits; a bad setting.

    Example:
        >>> points = torch.tensor([[0.0, 0.0]])
        >>> line = lambda inputs: torch.stack([inputs[:, 0], -inputs[:, 0]], 1)
        >>> virtual_adversarial_loss(points, line, torch.Generator().manual_seed(0), eps=1.0)  # log cosh 1
        tensor([0.4338])
    """
    if not eps >= 0:
        raise ValueError(f"eps={eps} must be >= 0; 0 moves nothing.")
    direction = adversarial_direction(inputs, again, generator=generator, xi=xi, iterations=iterations)
    with torch.no_grad():
        p = again(inputs).softmax(1)
    return _divergence(p, again(inputs.detach() + eps * direction))


def _divergence(p: Tensor, logits: Tensor) -> Tensor:
    """(N,) the Kullback-Leibler divergence from p to the softmax of logits, in float32 or better."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return (torch.xlogy(p.to(wide), p.to(wide)) - p.to(wide) * logits.to(wide).log_softmax(1)).sum(1)


def _unit(vectors: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """Each sample's vector at length 1; one of length 0 gives way to ``otherwise``."""
    flat = vectors.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)  # The square of a small gradient would vanish.
    scaled = flat / torch.where(largest > 0, largest, 1)
    units = scaled / torch.where(largest > 0, scaled.norm(dim=1, keepdim=True), 1)
    if otherwise is not None:
        units = torch.where(largest > 0, units, otherwise.flatten(1))
    return units.view_as(vectors)


def _check(xi: float, iterations: int) -> None:
    if not xi > 0:
        raise ValueError(f"xi={xi} must be > 0: it is the length of the trial step.")
    if iterations < 0:
        raise ValueError(f"iterations={iterations} must be >= 0; 0 keeps the random direction.")


class VAT(Regularizer):
    r"""Makes the prediction keep its value under the worst small change of the inputs; needs no labels.

    The terms are those of :func:`virtual_adversarial_loss` (virtual adversarial training).

    Args:
        eps: :math:`\epsilon`, the length of the change for each sample, in the units of your inputs. The most important
            setting: the authors' code takes 8 for images of 32x32 pixels.
        xi: :math:`\xi`, the length of the trial step, for inputs with a scale near 1.
        iterations: how often the direction is improved; the paper finds 1 enough.

    Raises:
        ValueError: ``eps`` below 0, ``xi`` not above 0, ``iterations`` below 0; in a training, inputs that are no
            floats, or have fewer than 32 bits.

    When to use: if few samples have labels, or if small changes of the inputs must not change the class.
    Cost: ``iterations + 2`` forward passes and one backward pass through the network for the term, and one backward
    pass to the inputs for each iteration.
    Interactions: rows without a label count too: this is the method's purpose. All passes share one dropout mask.
    BatchNorm normalises each pass by itself, and keeps the statistics of the step's own pass.

    Example:
        >>> VAT(eps=0.0)(torch.ones(2, 3), lambda inputs: inputs)
        tensor([0., 0.])

    Paper: Miyato et al., Virtual Adversarial Training: A Regularization Method for Supervised and Semi-Supervised
    Learning, TPAMI 2019, algorithm 1, https://arxiv.org/abs/1704.03976.

    Differs from the paper's code: the trial step is 1e-2 and not 1e-6, whose effect is below the rounding of float32.
    """

    function = staticmethod(virtual_adversarial_loss)
    family = "robustness"
    by_process = "each process draws the directions of its own rows"
    unsupported: ClassVar = {"bf16_true": "inputs of bfloat16 cannot be moved by small steps; use bf16-mixed"}
    unkept_laws: ClassVar = {
        "the_gradient_is_that_of_finite_differences": "the prediction that it compares with, and the direction, are "
        "constants for the gradient"
    }

    def __init__(self, *, eps: float = 8.0, xi: float = 1e-2, iterations: int = 1) -> None:
        super().__init__()
        if not eps >= 0:
            raise ValueError(f"eps={eps} must be >= 0; 0 moves nothing.")
        _check(xi, iterations)
        self.eps = eps
        self.xi = xi
        self.iterations = iterations

    def active(self, *, step: int) -> bool:
        """False if nothing is moved."""
        return self.eps > 0

    def forward(self, inputs: Tensor, again: Callable[..., Tensor], generator: torch.Generator | None = None) -> Tensor:
        """(N, ...) inputs and further passes over them -> (N,) terms."""
        return virtual_adversarial_loss(inputs, again, generator, eps=self.eps, xi=self.xi, iterations=self.iterations)
