"""A penalty on the gradient of the loss by the inputs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Regularizer
from lightning_objectives.regularizers._inputs import square_of_gradient
from lightning_objectives.shapes import check_shapes


def input_gradient_penalty(inputs: Tensor, target: Tensor, again: Callable[..., Tensor]) -> Tensor:
    r"""Compute how steeply the cross entropy of each sample changes with its inputs.

    .. math::
        \left\| \nabla_{x_i} L(z(x_i), y_i) \right\|_2^2

    Args:
        inputs: (N, ...) floats.
        target: (N,) int classes or (N, C) float class probabilities.
        again: calls the network once more, ``again(inputs)`` -> (N, C) logits.

    Returns:
        (N,) terms >= 0, float32 at least.

    Raises:
        ValueError: inputs that are no floats, or shapes that do not fit.

    Example:
        >>> line = lambda inputs: torch.stack([inputs[:, 0], -inputs[:, 0]], 1)  # The slope at 0 is -2 · (1 - 1/2).
        >>> input_gradient_penalty(torch.zeros(1, 2), torch.tensor([0]), line)
        tensor([1.], grad_fn=<SumBackward1>)
    """
    check_shapes(inputs=inputs, target=target)

    def losses(x: Tensor) -> Tensor:
        logits = again(x)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target, reduction="none")

    return square_of_gradient(inputs, losses)


class InputGradientPenalty(Regularizer):
    r"""Makes the loss flat around each sample, so that small changes of the inputs cannot raise it much.

    The terms are those of :func:`input_gradient_penalty`, whose factor is the callback's ``strength``. It depends on
    the scale of the inputs, so choose one; the paper tries a grid for each data set.

    When to use: for robustness to small changes of the inputs, or for gradients that can be read as explanations.
    Cost: one more forward pass, and two backward passes through it: about three times the time of a step.
    Interactions: the network must have a second derivative, which a compiled network and some fused attention do not.
    With ReLU the second derivative is that of the pieces. The pass has dropout masks of its own. BatchNorm couples the
    samples of the pass, and keeps the statistics of the step's own pass. The loss here is plain cross entropy, without
    the class weights and the label smoothing of your criterion.

    Example:
        >>> InputGradientPenalty()(torch.zeros(1, 2), torch.tensor([0]), lambda inputs: 2 * inputs).detach()
        tensor([2.])

    Paper: Ross and Doshi-Velez, Improving the Adversarial Robustness and Interpretability of Deep Neural Networks by
    Regularizing their Input Gradients, AAAI 2018, https://arxiv.org/abs/1711.09404; before them Drucker and LeCun,
    Double Backpropagation, 1991.
    """

    function = staticmethod(input_gradient_penalty)
    family = "robustness"
    problems = ("classes",)

    def forward(self, inputs: Tensor, target: Tensor, again: Callable[..., Tensor]) -> Tensor:
        """(N, ...) inputs, their targets, and further passes over them -> (N,) terms."""
        return input_gradient_penalty(inputs, target, again)
