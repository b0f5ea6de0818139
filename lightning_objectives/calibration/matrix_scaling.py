"""Matrix scaling."""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Calibrator
from lightning_objectives.shapes import check_classes, check_shapes

_STEPS = 200
"""Several times what Newton's method needs, also if the logits separate the classes."""


def best_matrix_and_bias(
    logits: Tensor, target: Tensor, *, off_diagonal: float = 0.0, intercept: float = 0.0, penalty: float = 1e-6
) -> tuple[Tensor, Tensor]:
    r"""Compute the matrix and the bias with the lowest negative log-likelihood.

    .. math::
        W, b = \arg\min_{W, b} \frac{1}{N} \sum_i -\log \operatorname{softmax}(W z_i + b)_{y_i}
        + \frac{\lambda}{C (C - 1)} \sum_{i \ne j} W_{ij}^2 + \frac{\mu}{C} \sum_i b_i^2
        + \frac{\epsilon}{2} \left( \lVert W - I \rVert^2 + \lVert b \rVert^2 \right)

    This is strictly convex. Newton's method, with conjugate gradients and a line search, therefore reaches the one
    minimum, in float64, and draws nothing.

    Args:
        logits: (N, C) of samples that the network was not trained on.
        target: (N,) int classes or (N, C) float class probabilities.
        off_diagonal: :math:`\lambda \ge 0`, which keeps the classes apart. Infinite is not allowed; 1e6 is.
        intercept: :math:`\mu \ge 0`, which keeps the biases near 0.
        penalty: :math:`\epsilon > 0`, which pulls towards the softmax of the logits themselves. Without it there is no
            minimum if the logits separate the classes, or if a class has no sample.

    Returns:
        the (C, C) matrix :math:`W` and the (C,) bias :math:`b`, in float64.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, settings outside of their range, no samples, or
            logits that are not finite.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> w, b = best_matrix_and_bias(logits, torch.tensor([0, 0, 1, 1]))
        >>> (logits.double() @ w.T + b).softmax(1)[0, 0].item()  # two of three
        0.66666...
    """
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    _check(off_diagonal, intercept, penalty)
    if not len(logits):
        raise ValueError("There are no samples to fit a matrix and a bias on.")
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(
            f"{bad} of {len(logits)} samples have logits that are not finite: no matrix and bias can correct them."
        )
    rows, classes = logits.shape
    x = F.pad(logits.detach().double(), (0, 1), value=1.0)  # The last column of W is the bias.
    q = target.detach().double() if target.is_floating_point() else F.one_hot(target.long(), classes).double()
    total = q.sum(1, keepdim=True)
    start = torch.eye(classes, classes + 1, dtype=x.dtype, device=x.device)
    pull = torch.full_like(start, 2 * off_diagonal / (classes * (classes - 1)))
    pull.diagonal().zero_()
    pull[:, -1] = 2 * intercept / classes
    pull = pull + penalty

    def objective(at: Tensor) -> Tensor:
        nll = -(q * (x @ at.T).log_softmax(1)).sum() / rows
        return nll + (pull * (at - start).square()).sum() / 2

    at, value = start, objective(start)
    for _ in range(_STEPS):
        p = (x @ at.T).softmax(1)
        gradient = (p * total - q).T @ x / rows + pull * (at - start)
        weighted = p * total / rows

        def curvature(way: Tensor, p: Tensor = p, weighted: Tensor = weighted) -> Tensor:
            moved = x @ way.T
            return (weighted * (moved - (p * moved).sum(1, keepdim=True))).T @ x + pull * way

        step = _solve(curvature, gradient, (weighted * (1 - p)).T @ x.square() + pull)
        size, slope = 1.0, float((gradient * step).sum())
        while objective(at - size * step) > value - 1e-4 * size * slope + 1e-14 * abs(value) and size > 1e-9:
            size /= 2
        at = at - size * step
        value = objective(at)
        if slope <= 1e-16:  # Before this step, half of it was left to gain, and a step squares the error.
            break
    return at[:, :-1], at[:, -1]


def _solve(curvature: Callable[[Tensor], Tensor], gradient: Tensor, diagonal: Tensor) -> Tensor:
    """Solve ``curvature(step) = gradient`` by conjugate gradients, the closer the smaller the gradient is."""
    step, left = torch.zeros_like(gradient), gradient
    scaled = left / diagonal
    way, size = scaled, (left * scaled).sum()
    enough = size * min(0.25, float(size) ** 0.5)
    for _ in range(gradient.numel()):
        if size <= enough:
            break
        bent = curvature(way)
        share = size / (way * bent).sum()
        step, left = step + share * way, left - share * bent
        scaled = left / diagonal
        size, last = (left * scaled).sum(), size
        way = scaled + size / last * way
    return step


def _check(off_diagonal: float, intercept: float, penalty: float) -> None:
    for name, value in (("off_diagonal", off_diagonal), ("intercept", intercept)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} must be >= 0 and finite; 0 leaves it out, and 1e6 leaves nothing else.")
    if not 0 < penalty < float("inf"):
        raise ValueError(
            f"penalty={penalty} must be positive and finite: without it there is no best matrix if the logits separate "
            "the classes. 1e-12 changes no digit of the others."
        )


class MatrixScaling(Calibrator):
    r"""Corrects probabilities of classes that are taken for each other: passes the logits through one linear layer.

    Matrix and bias are fitted by :func:`best_matrix_and_bias`. Before the fit the probabilities are those of softmax.

    Args:
        off_diagonal: :math:`\lambda \ge 0`, the penalty of the entries beside the diagonal; Kull et al. choose it by
            cross-validation, and Guo et al. have none.
        intercept: :math:`\mu \ge 0`, the penalty of the bias; chosen in the same way.
        penalty: pulls towards the plain softmax, so that a class without a sample keeps a probability above 0.

    Raises:
        ValueError: settings outside of their range; logits of other classes than those of the fit.

    When to use: if the network takes some classes for certain others, and there are several times C samples of each
    class. It fits C numbers for each class: with 100 classes or few samples it overfits, even with
    ``off_diagonal``. Guo et al. found it worse than ``TemperatureScaling`` there. Compare the negative log-likelihood
    on other data.
    Cost: about ten steps of Newton's method, each with products of a (N, C) and a (C, C) matrix, in float64: up to some
    hundred if there are fewer than C samples of each class, which takes a minute or two with 100 classes and 5000
    samples on one core.
    Interactions: the top class may change, and with it the accuracy. Fit it on the weights that you use.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> scaling = MatrixScaling()
        >>> scaling.fit(logits, torch.tensor([0, 0, 1, 1]))
        >>> scaling(logits[:1])
        tensor([[0.6667, 0.3333]])

    Paper: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2,
    https://arxiv.org/abs/1706.04599; the two penalties (ODIR): Kull et al., Beyond Temperature Scaling, NeurIPS 2019,
    https://arxiv.org/abs/1910.12656.

    Differs from the paper: the small penalty, without which a class that has no sample would get the probability 0.
    Kull's code takes plain sums for the two others: multiply its :math:`\lambda` by :math:`C (C - 1)` and its
    :math:`\mu` by :math:`C`. Not checked at the source: that the paper's are the means that are taken here.
    """

    family = "overconfidence"
    fitted_shapes: ClassVar = {"weight": "(C, C) float", "bias": "(C,) float"}

    weight: Tensor
    bias: Tensor

    def __init__(self, *, off_diagonal: float = 0.0, intercept: float = 0.0, penalty: float = 1e-6) -> None:
        super().__init__()
        _check(off_diagonal, intercept, penalty)
        self.off_diagonal = off_diagonal
        self.intercept = intercept
        self.penalty = penalty

    @staticmethod
    def inputs(logits: Tensor) -> Tensor:
        """What the linear layer gets: the logits themselves."""
        return logits

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit matrix and bias to (N, C) logits and (N,) classes or (N, C) probabilities."""
        check_shapes(logits=logits, target=target)
        self.weight, self.bias = best_matrix_and_bias(self.inputs(logits.double()), target, **self.settings())

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N, C) probabilities, in float32 at least."""
        fitted = self.check_logits(logits)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not fitted:
            return logits.softmax(1)
        weight, bias = (buffer.to(logits.device, logits.dtype) for buffer in (self.weight, self.bias))
        return (self.inputs(logits) @ weight.T + bias).softmax(1)
