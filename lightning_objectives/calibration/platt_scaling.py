"""Platt scaling."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Calibrator
from lightning_objectives.shapes import check_classes, check_shapes

_STEPS = 100
"""Several times what Newton's method needs, also if the logits separate the classes."""


def sigmoid_scale_and_bias(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute the scale and the bias with which a sigmoid turns the log odds of each class into a probability.

    .. math::
        a, b = \arg\min_{a, b} -\sum_i t_i \log p_i + (1 - t_i) \log(1 - p_i),
        \qquad p_i = \frac{1}{1 + e^{-(a f_i + b)}}

    for each class against the others, with the log odds :math:`f_c = z_c - \log \sum_{j \ne c} e^{z_j}`. If there are
    two classes, :math:`f_1 = z_1 - z_0`, and :math:`f_0 = -f_1` gives the same probabilities.

    With :math:`N_+` samples of the class and :math:`N_-` others, the targets are :math:`t = (N_+ + 1) / (N_+ + 2)` for
    the class and :math:`t = 1 / (N_- + 2)` for the others. They are never 0 or 1, so there is a minimum even if the
    logits separate the classes. Newton's method with a line search reaches it, in float64, and draws nothing. If all
    :math:`f` are equal, many pairs are as good, and the scale is 0.

    Args:
        logits: (N, C) of samples that the network was not trained on.
        target: (N,) int classes or (N, C) float class probabilities. A row of probabilities counts as a part of a
            sample of each class.

    Returns:
        (C,) scales :math:`a` and (C,) biases :math:`b`, in float64. The paper writes :math:`A = -a`, :math:`B = -b`.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, no samples, or logits that are not finite.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> a, b = sigmoid_scale_and_bias(logits, torch.tensor([0, 0, 1, 1]))
        >>> torch.sigmoid(a + b)  # (2 + 1) / (2 + 2)
        tensor([0.7500, 0.7500], dtype=torch.float64)
    """
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    if not len(logits):
        raise ValueError("There are no samples to fit scales and biases on.")
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(
            f"{bad} of {len(logits)} samples have logits that are not finite: no scale and bias can correct them."
        )
    odds = _log_odds(logits.detach().double())
    q = target.detach().double() if target.is_floating_point() else F.one_hot(target.long(), logits.shape[1]).double()
    found = [_one_class(f, own, rest) for f, own, rest in zip(odds.T, q.T, (q.sum(1, keepdim=True) - q).T)]
    return torch.stack([scale for scale, _ in found]), torch.stack([bias for _, bias in found])


def _one_class(f: Tensor, own: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) log odds, and the parts of each row that are of the class and of others -> scale and bias."""
    positive, negative = own.sum(), rest.sum()
    high, low = (positive + 1) / (positive + 2), 1 / (negative + 2)
    ones, zeros = own * high + rest * low, own * (1 - high) + rest * (1 - low)

    # Log odds of the mean 0 and the deviation 1 make the system well conditioned, whatever the unit of the logits.
    mean, unit = f.mean(), f.std(correction=0)
    if f.min() == f.max():
        mean, unit = f[0], torch.ones_like(unit)
    basis = torch.stack([(f - mean) / unit, torch.ones_like(f)])

    def objective(at: Tensor) -> Tensor:
        s = at @ basis
        return (ones * F.softplus(-s) + zeros * F.softplus(s)).sum()

    at = torch.stack([f.new_zeros(()), ((positive + 1) / (negative + 1)).log()])
    value = objective(at)
    for _ in range(_STEPS):
        p = (at @ basis).sigmoid()
        gradient = basis @ (p * (ones + zeros) - ones)
        hessian = (basis * (p * (1 - p) * (ones + zeros))) @ basis.T
        hessian.diagonal().add_(1e-12)  # If all log odds are equal, nothing depends on the scale.
        step = torch.linalg.solve(hessian, gradient)
        size, slope = 1.0, float(gradient @ step)
        while objective(at - size * step) > value - 1e-4 * size * slope + 1e-14 * abs(value) and size > 1e-9:
            size /= 2
        at = at - size * step
        value = objective(at)
        if slope <= 1e-16 * len(f):  # Before this step, half of it was left to gain, and a step squares the error.
            break
    scale = at[0] / unit
    return scale, at[1] - scale * mean


def _log_odds(logits: Tensor) -> Tensor:
    """(N, C) logits -> (N, C) logarithms of p / (1 - p)."""
    top = logits.argmax(1, keepdim=True)
    # 1 - p of the top class rounds to 0, so its odds are computed from the logits of the others.
    others = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    log_p = logits.log_softmax(1).scatter(1, top, -1.0)
    return (log_p - log_p.exp().neg().log1p()).scatter(1, top, logits.gather(1, top) - others)


class PlattScaling(Calibrator):
    """Turns scores into probabilities by a sigmoid with a fitted scale and bias, from few samples and for any scores.

    Scale and bias are fitted by :func:`sigmoid_scale_and_bias`, for each class against the others; the probabilities of
    a row are then divided by their sum. Before the fit they are those of softmax.

    Raises:
        ValueError: logits of other classes than those of the fit.

    When to use: for two classes, if there are few samples to calibrate on, or if the scores are margins as those of a
    hinge loss. The targets are smoothed, which keeps the probabilities away from 0 and 1 even if the scores separate
    the classes. So the negative log-likelihood of the fitted samples may rise.
    Cost: about ten steps of Newton's method for each class, each with a few numbers for each sample, in float64.
    Interactions: the bias moves the borders between the classes, and with it the accuracy. Fit it on the weights that
    you use.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> scaling = PlattScaling()
        >>> scaling.fit(logits, torch.tensor([0, 0, 1, 1]))
        >>> scaling(logits[:1])  # (2 + 1) / (2 + 2)
        tensor([[0.7500, 0.2500]])

    Paper: Platt, Probabilistic Outputs for Support Vector Machines, 1999; Lin, Lin and Weng, A Note on Platt's
    Probabilistic Outputs for Support Vector Machines, Machine Learning 2007, equation 1,
    https://www.csie.ntu.edu.tw/~cjlin/papers/plattprob.pdf.

    Differs from the paper: it is for two classes; more are taken one against the others here.
    """

    family = "overconfidence"
    fitted_shapes: ClassVar = {"scale": "(C,) float", "bias": "(C,) float"}

    scale: Tensor
    bias: Tensor

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit scale and bias to (N, C) logits and (N,) classes or (N, C) probabilities."""
        self.scale, self.bias = sigmoid_scale_and_bias(logits, target)

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N, C) probabilities, in float32 at least."""
        fitted = self.check_logits(logits)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not fitted:
            return logits.softmax(1)
        scale, bias = (buffer.to(logits.device, logits.dtype) for buffer in (self.scale, self.bias))
        # A softmax of logarithms divides the sigmoids by their sum, also if each of them rounds to 0.
        return F.logsigmoid(scale * _log_odds(logits) + bias).softmax(1)
