"""Label-distributionally robust loss with one temperature per sample."""

import math

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses.ldr import score_gaps
from lightning_objectives.shapes import check_classes, check_shapes, forms

_GAPS = {"gaps": forms("(N, C)")}


def adaptive_temperatures(
    gaps: Tensor, *, temperature: float = 1.0, alpha: float = 2.0, iterations: int = 20
) -> Tensor:
    r"""Compute the temperature of each sample, from :math:`\lambda_0 (1 - 1 / \alpha)` to :math:`\lambda_0`.

    .. math::
        \lambda = \lambda_0 \left(1 - \frac{\mathrm{KL}(p \,\|\, 1/C)}{\alpha \log C}\right), \qquad
        p = \operatorname{softmax}(d / \lambda)

    at the fixed point to which iterations fall from :math:`\lambda_0`.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    >>> adaptive_temperatures(torch.tensor([[0.0, 0.0], [0.0, -99.0]]))[:, 0]
    tensor([1.0000, 0.5000])
    """
    _check(temperature, alpha, 0.0, iterations)
    check_shapes(_GAPS, gaps=gaps)
    check_classes(gaps, "gaps")
    gaps = gaps.detach()
    log_classes = math.log(gaps.shape[1])
    temperatures = torch.full_like(gaps[:, :1], temperature)
    for _ in range(iterations):
        log_p = (gaps / temperatures).log_softmax(1)
        divergence = (log_p.exp() * log_p).sum(1, keepdim=True) + log_classes
        temperatures = temperature * (1 - divergence / (alpha * log_classes))
    return temperatures


def adaptive_ldr_loss(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    alpha: float = 2.0,
    margin: float = 0.0,
    iterations: int = 20,
) -> Tensor:
    r"""Compute the loss of :func:`~lightning_objectives.losses.ldr_loss`, but sharper where the network is sure.

    .. math::
        \ell = \max_{\lambda \ge 0} \; \lambda \log \frac{1}{C} \sum_k e^{d_k / \lambda}
             - \frac{\alpha \log C}{2 \lambda_0} (\lambda - \lambda_0)^2

    at the :math:`\lambda` of :func:`adaptive_temperatures`, with the gaps of
    :func:`~lightning_objectives.losses.score_gaps`. No gradient flows through :math:`\lambda`, because the derivative
    there is 0.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities.
        temperature: :math:`\lambda_0 > 0`, the temperature of samples about which the network says nothing.
        alpha: :math:`\alpha > 1`, how closely the temperatures are held to :math:`\lambda_0`; infinity gives the LDR
            loss.
        margin: :math:`c \ge 0`.
        iterations: the number of steps towards the fixed point.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> adaptive_ldr_loss(torch.zeros(1, 3), torch.tensor([0]))
        tensor([0.])

    Paper: Zhu, Ying and Yang, Label Distributionally Robust Losses for Multi-class Classification: Consistency,
    Robustness and Adaptivity, ICML 2023, https://arxiv.org/abs/2112.14869.

    Differs from the paper: the temperature is computed anew at each visit of a sample. The paper keeps one temperature
    for each sample of the data set, and updates it once per visit. So there is no state here, and no index is needed.
    """
    _check(temperature, alpha, margin, iterations)
    gaps = score_gaps(logits, target, margin=margin)
    lambdas = (
        temperature
        if alpha == math.inf
        else adaptive_temperatures(gaps, temperature=temperature, alpha=alpha, iterations=iterations)
    )
    log_classes = math.log(gaps.shape[1])
    losses = lambdas * ((gaps / lambdas).logsumexp(1, keepdim=True) - log_classes)
    if alpha != math.inf:
        losses = losses - alpha * log_classes / (2 * temperature) * (lambdas - temperature) ** 2
    return losses.squeeze(1)


def _check(temperature: float, alpha: float, margin: float, iterations: int) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be > 0 and finite.")
    if not alpha > 1:
        raise ValueError(f"alpha={alpha} must be > 1, so that every sample's temperature is positive.")
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin={margin} must be >= 0 and finite.")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be >= 1; 20 reach the fixed point.")


class AdaptiveLDRLoss(Loss):
    r"""Makes training robust to labels that are noisy for some samples only, by a temperature for each sample.

    The losses are those of :func:`adaptive_ldr_loss`.

    Args:
        temperature: :math:`\lambda_0 > 0`.
        alpha: :math:`\alpha > 1`.
        margin: :math:`c \ge 0`.
        iterations: the number of steps towards the fixed point, at which every sample's temperature is exact to about
            1e-4.

    Raises:
        ValueError: a setting outside its range.

    When to use: if labels are noisy for some samples and clean for others. The samples that the network is sure of get
    the sharper loss.
    Cost: ``iterations`` softmaxes of the logits, without gradient.
    Interactions: those of ``LDRLoss``. The temperatures here belong to the loss; they are not a calibration.

    Example:
        >>> AdaptiveLDRLoss(alpha=float("inf"))(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))  # log((1 + e) / 2)
        tensor([0.6201])
    """

    exemplar = True
    function = staticmethod(adaptive_ldr_loss)
    family = "label noise"
    problems = ("classes",)

    def __init__(
        self, *, temperature: float = 1.0, alpha: float = 2.0, margin: float = 0.0, iterations: int = 20
    ) -> None:
        super().__init__()
        _check(temperature, alpha, margin, iterations)
        self.temperature = temperature
        self.alpha = alpha
        self.margin = margin
        self.iterations = iterations

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        settings = {"temperature": self.temperature, "alpha": self.alpha, "margin": self.margin}
        return adaptive_ldr_loss(logits, target, **settings, iterations=self.iterations)
