"""Vector scaling."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Calibrator
from lightning_objectives.shapes import check_classes, check_shapes

_STEPS = 200
"""Several times what Newton's method needs, also if the logits separate the classes."""


def best_scale_and_bias(logits: Tensor, target: Tensor, *, penalty: float = 1e-6) -> tuple[Tensor, Tensor]:
    r"""Compute the scale and the bias of each class with the lowest negative log-likelihood.

    .. math::
        w, b = \arg\min_{w, b} \frac{1}{N} \sum_i -\log \operatorname{softmax}(w \odot z_i + b)_{y_i}
        + \frac{\lambda}{2} \left( \lVert w - 1 \rVert^2 + \lVert b \rVert^2 \right)

    This is strictly convex. Newton's method with a line search therefore reaches the one minimum, in float64, and draws
    nothing.

    Args:
        logits: (N, C) of samples that the network was not trained on.
        target: (N,) int classes or (N, C) float class probabilities.
        penalty: :math:`\lambda > 0`, which pulls towards the softmax of the logits themselves. Without it there is no
            minimum if the logits separate the classes, or if a class has no sample.

    Returns:
        (C,) scales :math:`w` and (C,) biases :math:`b`, in float64. The biases sum to 0.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, a penalty that is not positive, no samples, or
            logits that are not finite.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> w, b = best_scale_and_bias(logits, torch.tensor([0, 0, 1, 1]))
        >>> ((w * logits + b).softmax(1)[0]).tolist()[0]  # two of three
        0.66666...
    """
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    _check(penalty)
    if not len(logits):
        raise ValueError("There are no samples to fit scales and biases on.")
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(
            f"{bad} of {len(logits)} samples have logits that are not finite: no scale and bias can correct them."
        )
    z = logits.detach().double()
    classes = z.shape[1]
    target = target.detach().double() if target.is_floating_point() else target.long()
    q = target if target.is_floating_point() else F.one_hot(target, classes).double()
    start = torch.cat([z.new_ones(classes), z.new_zeros(classes)])

    def objective(at: Tensor) -> Tensor:
        nll = F.cross_entropy(at[:classes] * z + at[classes:], target)
        return nll + penalty / 2 * (at - start).square().sum()

    def derivatives(at: Tensor) -> tuple[Tensor, Tensor]:
        p = (at[:classes] * z + at[classes:]).softmax(1) * q.sum(1, keepdim=True)
        error = p - q
        gradient = torch.cat([(error * z).mean(0), error.mean(0)]) + penalty * (at - start)
        root = (p / q.sum(1, keepdim=True).clamp_min(1e-300).sqrt()).repeat(1, 2)
        root[:, :classes] *= z
        hessian = -root.T @ root / len(z)
        for row, column, power in ((0, 0, 2), (0, 1, 1), (1, 0, 1), (1, 1, 0)):
            block = hessian[row * classes : (row + 1) * classes, column * classes : (column + 1) * classes]
            block.diagonal().add_((p * z**power).mean(0))
        hessian.diagonal().add_(penalty)
        return gradient, hessian

    at, value = start, objective(start)
    for _ in range(_STEPS):
        gradient, hessian = derivatives(at)
        unit = hessian.diagonal().rsqrt()  # Classes of very different logits make the system well conditioned so.
        step = unit * torch.linalg.solve(unit[:, None] * hessian * unit, unit * gradient)
        size, slope = 1.0, float(gradient @ step)
        while objective(at - size * step) > value - 1e-4 * size * slope + 1e-14 * abs(value) and size > 1e-9:
            size /= 2
        at = at - size * step
        value = objective(at)
        if slope <= 1e-16:  # Before this step, half of it was left to gain, and a step squares the error.
            break
    return at[:classes], at[classes:]


def _check(penalty: float) -> None:
    if not 0 < penalty < float("inf"):
        raise ValueError(
            f"penalty={penalty} must be positive and finite: without it there is no best scale if the logits separate "
            "the classes. 1e-12 changes no digit of the others."
        )


class VectorScaling(Calibrator):
    """Corrects probabilities whose errors differ from class to class: scales and shifts the logits of each class.

    Scale and bias are fitted by :func:`best_scale_and_bias`. Before the fit the probabilities are those of softmax.

    Args:
        penalty: pulls towards the plain softmax, so that a class without a sample keeps a probability above 0.

    Raises:
        ValueError: a penalty that is not positive; logits of other classes than those of the fit.

    When to use: if some classes are predicted too often and others too rarely, as after training with class weights or
    a resampled data set. It fits two numbers for each class: use it with some dozens of samples a class, and compare
    the negative log-likelihood on other data with that of ``TemperatureScaling``.
    Cost: about ten steps of Newton's method. Each multiplies two (N, 2C) matrices and solves 2C equations, in float64;
    the equations take 32 MB for 1000 classes.
    Interactions: the top class may change, and with it the accuracy. Fit it on the weights that you use.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> scaling = VectorScaling()
        >>> scaling.fit(logits, torch.tensor([0, 0, 1, 1]))
        >>> scaling(logits[:1])
        tensor([[0.6667, 0.3333]])

    Paper: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2,
    https://arxiv.org/abs/1706.04599.

    Differs from the paper: the small penalty, without which a class that has no sample would get the probability 0.
    """

    family = "overconfidence"
    fitted_shapes: ClassVar = {"scale": "(C,) float", "bias": "(C,) float"}

    scale: Tensor
    bias: Tensor

    def __init__(self, *, penalty: float = 1e-6) -> None:
        super().__init__()
        _check(penalty)
        self.penalty = penalty

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit scale and bias to (N, C) logits and (N,) classes or (N, C) probabilities."""
        self.scale, self.bias = best_scale_and_bias(logits, target, penalty=self.penalty)

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N, C) probabilities, in float32 at least."""
        fitted = self.check_logits(logits)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not fitted:
            return logits.softmax(1)
        scale, bias = (buffer.to(logits.device, logits.dtype) for buffer in (self.scale, self.bias))
        return (scale * logits + bias).softmax(1)
