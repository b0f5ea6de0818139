"""Spline calibration."""

from typing import ClassVar

import torch
from torch import Tensor

from lightning_objectives.calibration._one_against_rest import columns, piecewise_linear, probabilities
from lightning_objectives.kinds import Calibrator
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"inputs": forms("(N,) float"), "target": forms("(N,) float")}


def spline_recalibration(inputs: Tensor, target: Tensor, *, knots: int = 6) -> tuple[Tensor, Tensor]:
    r"""Compute how often samples come true, as a smooth function of their score.

    .. math::
        h(t_i) = \frac{1}{N} \sum_{j \le i} (y_j - s_j), \qquad t_i = \frac{i - 1}{N - 1}, \qquad
        f(s_i) = s_i + \hat h'(t_i)

    with the scores :math:`s_1 \le s_2 \le \ldots` and :math:`\hat h` the natural cubic spline with the least squared
    distance to :math:`h`; its knots are equally spaced from 0 to 1. Samples with equal scores share the mean of their
    targets and that of their :math:`f`, so that their order does not matter.

    Args:
        inputs: (N,) float scores :math:`s`, in any order.
        target: (N,) float :math:`y`; 1 if it came true and 0 if not, or between.
        knots: their number, 2 or more; with 2 the spline is a straight line.

    Returns:
        the (K,) different scores, increasing, and the function there, between 0 and 1; both float64.

    Raises:
        ValueError: shapes that do not fit, fewer than two knots, or no samples.

    Example:
        >>> spline_recalibration(torch.tensor([0.5, 0.7, 0.9]), torch.tensor([0.0, 1.0, 1.0]), knots=2)
        (tensor([0.5000, 0.7000, 0.9000], ...), tensor([0.6333, 0.8333, 1.0000], ...))
    """
    check_shapes(_FORMS, inputs=inputs, target=target)
    _check(knots)
    if not len(inputs):
        raise ValueError("There are no samples to fit a spline on.")
    points, group, counts = inputs.detach().double().unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]  # torch
    rates = torch.zeros_like(points).index_add(0, group, target.detach().double()) / counts
    n = len(inputs)
    h = ((rates - points).repeat_interleave(counts)).cumsum(0) / n
    t = torch.arange(n, dtype=h.dtype, device=h.device) / max(n - 1, 1)
    values, slopes = _natural_splines(t, knots)
    slope = slopes @ (torch.linalg.pinv(values) @ h)
    same = torch.arange(len(points), device=h.device).repeat_interleave(counts)
    return points, (points + torch.zeros_like(points).index_add(0, same, slope) / counts).clamp(0, 1)


def _natural_splines(t: Tensor, knots: int) -> tuple[Tensor, Tensor]:
    """A basis of the natural cubic splines at t, and its derivatives; both (N, knots).

    It is that of Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, equations 5.4 and 5.5.
    """
    at = torch.linspace(0, 1, knots, dtype=t.dtype, device=t.device)
    beyond = (t[:, None] - at).clamp_min(0)
    cubes, squares = beyond**3, 3 * beyond**2
    width = at[-1] - at[:-1]
    values, slopes = ((part[:, :-1] - part[:, -1:]) / width for part in (cubes, squares))
    one = torch.ones_like(t)[:, None]
    return (
        torch.cat([one, t[:, None], values[:, :-1] - values[:, -1:]], 1),
        torch.cat([0 * one, one, slopes[:, :-1] - slopes[:, -1:]], 1),
    )


def _check(knots: int) -> None:
    if not knots >= 2:
        raise ValueError(f"knots={knots} must be 2 or more; the paper takes 6.")


class SplineCalibration(Calibrator):
    r"""Corrects how sure the network is of its top class, by a smooth function, without bins.

    The function of the highest probability is that of :func:`spline_recalibration`, a straight line between two scores
    of the fit and constant beyond the first and the last. The other classes share the rest in the proportions that they
    had. Before the fit the probabilities are those of softmax.

    Args:
        knots: the number of knots of the spline; more follow the data more closely.

    Raises:
        ValueError: fewer than two knots; in ``fit``, no samples, or logits that are not finite.

    When to use: if you act on the confidence of the top class, and one temperature does not correct it. A thousand
    samples are enough, because all classes share the function.
    Cost: a sort of the scores, and a least-squares problem of N rows and ``knots`` columns. It keeps two numbers for
    each different score of the fit.
    Interactions: the function may fall. If the network is much too sure, the corrected top class often falls below the
    second, and the top class changes: read the confidence at the ``argmax`` of the logits. The negative log-likelihood
    of the fitted set may rise, because only the top class counts. A probability may be exactly 0 or 1: on new data it
    is infinite if the target has 0 (``Calibrate`` logs a large number in its place).

    Example:
        >>> calibration = SplineCalibration(knots=2)
        >>> logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]])
        >>> calibration.fit(logits, torch.tensor([0, 1, 0, 1]))
        >>> calibration(logits)[:, 1]
        tensor([0.4762, 0.6259, 0.6977, 0.7271])

    Paper: Gupta et al., Calibration of Neural Networks using Splines, ICLR 2021, https://arxiv.org/abs/2006.12800.

    Differs from the paper: it also corrects the classes of a lower rank, each by a spline of its own; here they share
    the rest. The two weights of the interpolation are swapped in its code, and equal scores count in their order there.
    As in the code, h has N steps and t has N - 1, so that a correction falls short by the factor (N - 1) / N.
    Not checked at the source: the paper's own text; the formulas are those of its code.
    """

    family = "overconfidence"
    fitted_shapes: ClassVar = {"points": "(K,) float", "values": "(K,) float"}

    points: Tensor
    values: Tensor

    def __init__(self, *, knots: int = 6) -> None:
        super().__init__()
        _check(knots)
        self.knots = knots

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit the function to (N, C) logits and (N,) classes or (N, C) probabilities."""
        p, soft = (torch.stack(part, 1) for part in zip(*columns(logits, target)))
        scores, top = p.max(1, keepdim=True)
        self.points, self.values = spline_recalibration(
            scores.squeeze(1), soft.gather(1, top).squeeze(1), knots=self.knots
        )

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N, C) probabilities, in float32 at least."""
        fitted = self.check_logits(logits)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        if not fitted:
            return logits.to(dtype).softmax(1)
        p = probabilities(logits)
        scores, top = p.max(1, keepdim=True)
        points, values = (buffer.to(p.device, p.dtype) for buffer in (self.points, self.values))
        score = piecewise_linear(points, values, scores.squeeze(1))[:, None]
        # The proportions of the others, also if each of their probabilities rounds to 0.
        rest = logits.to(p.dtype).scatter(1, top, -torch.inf).softmax(1)
        return ((1 - score) * rest).scatter(1, top, score).to(dtype)
