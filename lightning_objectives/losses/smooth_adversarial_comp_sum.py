"""Smooth adversarial comp-sum losses."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import expected, wide
from lightning_objectives.losses.comp_sum import comp_sum_loss
from lightning_objectives.shapes import check_shapes


def smooth_adversarial_comp_sum_loss(
    logits: Tensor,
    target: Tensor,
    inputs: Tensor,
    again: Callable[..., Tensor],
    *,
    gamma: float,
    tau: float = 1.0,
    rho: float = 1.0,
    nu: float = 1.0,
    steps: int = 10,
) -> Tensor:
    r"""Compute a comp-sum loss, and how much the margins can change under a small change of the inputs.

    .. math::
        \ell = \Phi_\tau\left(\frac{z}{\rho}, y\right) +
        \nu \sup_{\|x' - x\|_\infty \le \gamma} \left\| \Delta(x', y) - \Delta(x, y) \right\|_2, \qquad
        \Delta(x, y) = (z_y - z_k)_{k \ne y}

    with :math:`\Phi_\tau` of :func:`comp_sum_loss`. For :math:`\nu \ge \sqrt{C - 1} / \rho` and
    :math:`\tau \ge 0` this is not below the loss of the worst change :math:`x'`, if its margins are cut off at 0 and
    :math:`\rho`. The supremum is sought by projected gradient ascent, which may end at a smaller, local one.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the loss.
        inputs: (N, ...) floats, of at least 32 bits.
        again: calls the network once more, ``again(inputs)`` -> (N, C) logits; equal calls give equal logits, so that
            dropout drops the same and does not count as a change.
        gamma: :math:`\gamma \ge 0`, the greatest change of each number of the inputs, in their units; 0 is the comp-sum
            loss.
        tau: :math:`\tau \in [0, 2]`; 1 is cross entropy.
        rho: :math:`\rho > 0`, the scale of the margins.
        nu: :math:`\nu \ge 0`, the weight of the change; 0 is the comp-sum loss.
        steps: how many steps the ascent takes, of 2.5 :math:`\gamma` together.

    Returns:
        (N,) losses >= 0. The changed inputs are constants for the gradient.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, inputs that are no floats, or have fewer than 32
            bits, or a setting outside its range.

    Example:
        >>> import torch
        >>> line = lambda inputs: torch.cat([inputs, -inputs], 1)  # a step of 0.5 moves the margin 2 x by 1
        >>> inputs, target = torch.zeros(1, 1), torch.tensor([0])
        >>> smooth_adversarial_comp_sum_loss(line(inputs), target, inputs, line, gamma=0.5, nu=2.0)  # log 2 + 2
        tensor([2.6931])

    Paper: Mao, Mohri and Zhong, Cross-Entropy Loss Functions: Theoretical Analysis and Applications, ICML 2023,
    https://arxiv.org/abs/2304.07288. Not checked at the source: the place of :math:`\rho`, and the norm of the change;
    with this norm the bound above was proved by its Lipschitz constants, and is tested. The paper's settings are
    unknown: the defaults are our own.

    Differs from the paper: the ascent begins with a step that lowers the margins, and not at a drawn point, so that a
    loss is the same each time. Changed inputs are not cut off at the range of the data.
    """
    _check(gamma, tau, rho, nu, steps)
    check_shapes(logits=logits, target=target, inputs=inputs)
    plain = comp_sum_loss(wide(logits) / rho, target, tau=tau)
    if not inputs.is_floating_point() or inputs.dtype.itemsize < 4:
        raise ValueError(
            f"Inputs of {inputs.dtype} cannot be moved by small steps: they must be float32 or float64. Give whole "
            "numbers (tokens) to another method, and train in float32 or mixed precision."
        )
    if gamma == 0 or nu == 0:
        return plain
    inputs = inputs.detach()
    # In half precision small changes would be lost in the rounding of the inputs.
    with torch.autocast(inputs.device.type, enabled=False):
        worst = _worst_inputs(inputs, target, again, gamma, steps)
        return plain + nu * _change(again(worst) - again(inputs), target)


def _worst_inputs(inputs: Tensor, target: Tensor, again: Callable[..., Tensor], gamma: float, steps: int) -> Tensor:
    """The inputs within ``gamma`` at which the margins have changed most, by projected gradient ascent."""
    with torch.no_grad():
        before = again(inputs)
    step, moved = 2.5 * gamma / steps, inputs
    for k in range(steps):
        with torch.enable_grad():
            trial = moved.detach().requires_grad_()
            logits = wide(again(trial))
            # Without a change there is no slope of the change yet, so the first step lowers the margins.
            rise = _change(logits - before, target) if k else logits.mean(1) - expected(logits, target)
            (slope,) = torch.autograd.grad(rise.sum(), trial)
        moved = torch.clamp(moved + step * slope.sign(), inputs - gamma, inputs + gamma)
    return moved


def _change(difference: Tensor, target: Tensor) -> Tensor:
    """(N,) the length of the change of the margins, for a difference of (N, C) logits."""
    centred = wide(difference)
    centred = centred - centred.mean(1, keepdim=True)
    # The sum over k of (d_y - d_k)² for each class y, without cancellation; a root has no slope at 0.
    squares = centred.shape[1] * centred.square() + centred.square().sum(1, keepdim=True)
    return expected(torch.where(squares > 0, squares, 1).sqrt() * (squares > 0), target)


def _check(gamma: float, tau: float, rho: float, nu: float, steps: int) -> None:
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma={gamma} must be >= 0 and finite; 0 changes no input.")
    if not 0 <= tau <= 2:
        raise ValueError(f"tau={tau} must be in [0, 2]; 1 is cross entropy, and 2 is 1 - p.")
    if not 0 < rho < math.inf:
        raise ValueError(f"rho={rho} must be > 0 and finite.")
    if not 0 <= nu < math.inf:
        raise ValueError(f"nu={nu} must be >= 0 and finite; 0 is the comp-sum loss.")
    if not (1 <= steps < math.inf and steps == int(steps)):
        raise ValueError(f"steps={steps} must be a whole number, 1 or more.")


class SmoothAdversarialCompSumLoss(Loss):
    r"""Trains a classifier whose decisions small changes of the inputs cannot turn over (ADV-COMP-SUM).

    The losses are those of :func:`smooth_adversarial_comp_sum_loss`.

    Args:
        gamma: :math:`\gamma`, the greatest change of each number of the inputs, in their units: for images that are
            normalised by a standard deviation of 0.25, a change of 8/255 is 0.125.
        tau: :math:`\tau`; 1 is cross entropy.
        rho: :math:`\rho`, the scale of the margins.
        nu: :math:`\nu`, how much the change counts: more makes the network robust, and less right on clean data.
        steps: how many steps find the worst change.

    Raises:
        ValueError: a setting outside its range; in a training, inputs that are no floats, or have fewer than 32 bits.

    When to use: if somebody may change the inputs to mislead the network. :class:`VAT` needs no labels, and takes one
    step.
    Cost: ``steps + 3`` forward passes through the network, and ``steps`` backward passes to the inputs, beside the
    step's own. With 10 steps a training takes about ten times as long.
    Interactions: all passes share one dropout mask. BatchNorm normalises each pass by itself, and keeps the statistics
    of the step's own pass. The accuracy on clean data falls. Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> loss = SmoothAdversarialCompSumLoss(gamma=0.0)  # cross entropy
        >>> loss(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 3), again=lambda inputs: inputs[:, :2])
        tensor([0.6931])
    """

    function = staticmethod(smooth_adversarial_comp_sum_loss)
    family = "robustness"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"gamma": 0.1, "steps": 3}
    unsupported: ClassVar = {"bf16_true": "inputs of bfloat16 cannot be moved by small steps; use bf16-mixed"}

    def __init__(self, *, gamma: float, tau: float = 1.0, rho: float = 1.0, nu: float = 1.0, steps: int = 10) -> None:
        super().__init__()
        _check(gamma, tau, rho, nu, steps)
        self.gamma = gamma
        self.tau = tau
        self.rho = rho
        self.nu = nu
        self.steps = steps

    def forward(self, logits: Tensor, target: Tensor, inputs: Tensor, again: Callable[..., Tensor]) -> Tensor:
        """(N, C) logits, (N,) classes or (N, C) probabilities, (N, ...) inputs and further passes -> (N,) losses."""
        return smooth_adversarial_comp_sum_loss(
            logits,
            target,
            inputs,
            again,
            gamma=self.gamma,
            tau=self.tau,
            rho=self.rho,
            nu=self.nu,
            steps=self.steps,
        )
