"""Temperature scaling."""

import math

import torch
from torch import Tensor

from lightning_objectives.kinds import Calibrator
from lightning_objectives.shapes import check_classes, check_shapes


def best_temperature(
    logits: Tensor, target: Tensor, *, min_temperature: float = 0.01, max_temperature: float = 100.0
) -> float:
    r"""Compute the temperature with the lowest negative log-likelihood.

    .. math::
        T = \arg\min_T \frac{1}{N} \sum_i -\log \operatorname{softmax}(z_i / T)_{y_i}

    It is convex in :math:`\beta = 1 / T`. Newton steps on its derivative, kept by bisection inside the interval
    that holds the root, therefore reach the one minimum, in float64.

    Args:
        logits: (N, C) of samples that the network was not trained on.
        target: (N,) int classes or (N, C) float class probabilities.
        min_temperature: the answer if the network is right on every sample, and no temperature is the best.
        max_temperature: the answer if the logits say nothing about the target.

    Returns:
        :math:`T`.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, bounds without 1 between them, no samples, or
            logits that are not finite.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> round(best_temperature(logits, torch.tensor([0, 0, 0, 1])), 4)  # sigmoid(2 / T) = 3/4: T = 2 / log 3
        1.8205
    """
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    _check(min_temperature, max_temperature)
    if not len(logits):
        raise ValueError("There are no samples to fit a temperature on.")
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(
            f"{bad} of {len(logits)} samples have logits that are not finite: no temperature can correct them."
        )
    scores = logits.detach().double()
    scores = scores - scores.amax(1, keepdim=True)
    if target.is_floating_point():
        target_scores = (target.double() * scores).sum(1)
    else:
        target_scores = scores.gather(1, target.long()[:, None]).squeeze(1)

    def slopes(beta: float) -> tuple[float, float]:
        """Compute the first and the second derivative of the mean negative log-likelihood."""
        p = (beta * scores).softmax(1)
        mean = (p * scores).sum(1)
        variance = (p * scores.square()).sum(1) - mean.square()
        return float((mean - target_scores).mean()), float(variance.mean())

    low, high, beta = 1 / max_temperature, 1 / min_temperature, 1.0
    if slopes(low)[0] >= 0:
        return max_temperature
    if slopes(high)[0] <= 0:
        return min_temperature
    for _ in range(100):
        first, second = slopes(beta)
        low, high = (beta, high) if first < 0 else (low, beta)
        newton = beta - first / second if second > 0 else math.inf
        beta, last = newton if low < newton < high else math.sqrt(low * high), beta
        if abs(beta - last) <= 1e-12 * last:
            break
    return 1 / beta


def _check(min_temperature: float, max_temperature: float) -> None:
    if not 0 < min_temperature <= 1 <= max_temperature < math.inf:
        raise ValueError(
            f"min_temperature={min_temperature} and max_temperature={max_temperature} must be positive and finite and "
            "have 1 between them, the temperature that changes nothing."
        )


class TemperatureScaling(Calibrator):
    """Corrects probabilities that are too confident or not confident enough: divides the logits by one temperature.

    The temperature is fitted by :func:`best_temperature`.

    Args:
        min_temperature: the lowest temperature, for a network that is right on every sample.
        max_temperature: the highest.

    Raises:
        ValueError: bounds without 1 between them.

    When to use: always, as the first thing to try. One number, fitted on a few hundred samples, corrects most of the
    overconfidence of a classifier.
    Cost: about ten passes over the kept logits.
    Interactions: the top class never changes, so the accuracy stays. Label smoothing, mixup and averages change the
    temperature that is needed: fit after them, on the weights that you use.

    Example:
        >>> scaling = TemperatureScaling()
        >>> scaling.fit(torch.tensor([[2.0, 0.0]]).expand(4, 2), torch.tensor([0, 0, 0, 1]))
        >>> scaling(torch.tensor([[2.0, 0.0]]))
        tensor([[0.7500, 0.2500]])

    Paper: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599.
    """

    family = "overconfidence"
    keeps_top_class = True

    temperature: Tensor

    def __init__(self, *, min_temperature: float = 0.01, max_temperature: float = 100.0) -> None:
        super().__init__()
        _check(min_temperature, max_temperature)
        self.min_temperature = min_temperature
        self.max_temperature = max_temperature
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit the temperature to (N, C) logits and (N,) classes or (N, C) probabilities."""
        bounds = {"min_temperature": self.min_temperature, "max_temperature": self.max_temperature}
        self.temperature.fill_(best_temperature(logits, target, **bounds))

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N, C) probabilities, in float32 at least."""
        check_shapes(logits=logits)
        check_classes(logits)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits / self.temperature.to(logits.device, logits.dtype)).softmax(1)
