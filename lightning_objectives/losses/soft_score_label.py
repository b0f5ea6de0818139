"""Soft labels for scores that are learned as ordered classes."""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import expected, log_probabilities, shares, wide
from lightning_objectives.shapes import check_shapes, forms

Density = Literal["pdf", "cdf"]
_FORMS = {"mean": forms("(N,) float"), "std": forms("(N,) float")}
_NARROW = 0.2
"""The standard deviation, in levels, below which a Gaussian would fall between the levels."""
_FAR = 0.1
"""How far, in levels, the mean of a label may lie from the score."""


def soft_score_labels(mean: Tensor, std: Tensor, *, levels: int, density: Density = "pdf") -> Tensor:
    r"""Compute a distribution over ordered levels for each score, with the mean of the score and its spread.

    .. math::
        p_k = \max(\alpha \varphi_k + \beta, 0)

    with :math:`\varphi_k` the density of a Gaussian at level k, and :math:`\alpha` and :math:`\beta` such that the sum
    is 1 and the mean is the score; then divided by its sum. Where the spread is below 0.2 levels, or the mean still
    more than 0.1 levels off, the score is divided between the two levels next to it.

    Args:
        mean: (N,) scores in units of levels, from 0 for the first level to ``levels - 1`` for the last.
        std: (N,) their standard deviations, in the same units.
        levels: the number of levels, 2 or more.
        density: ``pdf``, the density at the level; ``cdf``, the probability of the interval of half a level on each
            side, which the authors' code takes for data with small spreads.

    Returns:
        (N, levels) probabilities, in float32 or better.

    Raises:
        ValueError: shapes that do not fit, a score outside of the levels, a negative spread, or a bad setting.

    Example:
        >>> soft_score_labels(torch.tensor([1.0, 1.25]), torch.tensor([0.5, 0.0]), levels=3)
        tensor([[0.0671, 0.8658, 0.0671],
                [0.0000, 0.7500, 0.2500]])

    Paper: You et al., Teaching Large Language Models to Regress Accurate Image Quality Scores Using Score Distribution,
    CVPR 2025, https://arxiv.org/abs/2501.11561. The formulas and both limits are those of the authors' code.

    Differs from the authors' code: at the middle of the levels its formula is 0 / 0 and gives a uniform label. Here it
    is the limit, so that the label at the middle is that beside it. The probabilities sum to 1 also where some were cut
    off at 0.
    """
    _check(0.0, density)
    if levels < 2:
        raise ValueError(f"levels={levels} must be 2 or more: one level is always right.")
    check_shapes(_FORMS, mean=mean, std=std)
    if not bool(((mean >= 0) & (mean <= levels - 1)).all()):
        raise ValueError(
            f"The scores, from {mean.amin():g} to {mean.amax():g}, must lie between 0 and {levels - 1}, in units of "
            f"the {levels} levels. Bring them there, as (score - lowest) / (highest - lowest) * {levels - 1}."
        )
    if not bool((std >= 0).all()):
        raise ValueError(f"A standard deviation of {std.amin():g} must be >= 0; 0 is an exact score.")
    return _labels(wide(mean), wide(std), levels, density)


def _labels(mean: Tensor, std: Tensor, levels: int, density: Density) -> Tensor:
    places = torch.arange(levels, device=mean.device, dtype=mean.dtype)
    centre = (levels - 1) / 2
    gaps, width = places - mean[:, None], std.clamp_min(_NARROW)[:, None]
    if density == "pdf":
        values = (-(gaps / width).square() / 2).exp()
        slopes = values * gaps / width.square()
    else:
        above, below = (gaps + 0.5) / width, (gaps - 0.5) / width
        values = torch.special.ndtr(above) - torch.special.ndtr(below)
        slopes = ((-below.square() / 2).exp() - (-above.square() / 2).exp()) / (width * math.sqrt(2 * math.pi))
    # Level by level the mean is alpha (moment of the values about the centre), which is 0 / 0 at the centre.
    offset, moment = mean - centre, (values * (places - centre)).sum(1)
    at_centre = offset.abs() < torch.finfo(mean.dtype).eps ** (1 / 3)
    alpha = torch.where(at_centre, 1, offset) / torch.where(at_centre, (slopes * (places - centre)).sum(1), moment)
    beta = (1 - alpha * values.sum(1)) / levels
    label = (alpha[:, None] * values + beta[:, None]).clamp_min(0)
    label = label / label.sum(1, keepdim=True)
    is_off = ((label * places).sum(1) - mean).abs() > _FAR
    return torch.where(((std < _NARROW) | is_off)[:, None], (1 - gaps.abs()).clamp_min(0), label)


def soft_score_label_loss(
    logits: Tensor, target: Tensor, *, least_std: float = 0.0, density: Density = "pdf"
) -> Tensor:
    r"""Compute the divergence of the predicted levels from a soft label of the score.

    .. math::
        \ell = D_{KL}(p \| \operatorname{softmax}(z))

    with p the label of :func:`soft_score_labels` for the mean and the standard deviation of the target.

    Args:
        logits: (N, C) with C >= 2 levels in order, in any float type; computed in float32 or better.
        target: (N,) int levels, or (N, C) float shares of the levels, such as those of the annotators' ratings.
        least_std: the least standard deviation of a score, in levels. Without it a target of one level is cross
            entropy.
        density: ``pdf`` or ``cdf``.

    Returns:
        (N,) losses >= 0, up to rounding.

    Raises:
        ValueError: shapes that do not fit, fewer than two levels, or a bad setting.

    Example:
        >>> import torch
        >>> soft_score_label_loss(torch.zeros(1, 3), torch.tensor([1]), least_std=0.5)  # the label has 0.49 nats
        tensor([0.6112])

    Paper: You et al., Teaching Large Language Models to Regress Accurate Image Quality Scores Using Score Distribution,
    CVPR 2025, https://arxiv.org/abs/2501.11561.

    Differs from the paper: the mean and the standard deviation of a score are those of the target.
    """
    _check(least_std, density)
    log_p = log_probabilities(logits, target)
    share = shares(log_p, target.detach())
    places = torch.arange(logits.shape[1], device=logits.device, dtype=log_p.dtype)
    mean = (share * places).sum(1)
    std = (share * (places - mean[:, None]).square()).sum(1).sqrt().clamp_min(least_std)
    label = _labels(mean, std, logits.shape[1], density)
    return torch.xlogy(label, label).sum(1) - expected(log_p, label)


def _check(least_std: float, density: str) -> None:
    if not 0 <= least_std < math.inf:
        raise ValueError(f"least_std={least_std} must be >= 0 and finite; 0 adds no spread.")
    if density not in ("pdf", "cdf"):
        raise ValueError(f"density={density!r} must be 'pdf' or 'cdf'.")


class SoftScoreLabelLoss(Loss):
    """Learns scores, such as the quality of images, by ordered classes that know how close two levels are.

    The losses are those of :func:`soft_score_label_loss`.

    Args:
        least_std: the least standard deviation of a score, in levels: what a target of one level has.
        density: ``pdf``, or ``cdf`` for scores with small spreads.

    Raises:
        ValueError: a bad setting.

    When to use: if the classes are levels in order, from bad to excellent, and the score is the mean of the predicted
    probabilities. The best targets are the shares of the annotators' ratings; scores between two levels may be shares
    of these two, with the usual spread as ``least_std``; or compute (N, C) targets by :func:`soft_score_labels` in your
    data set.
    Cost: that of cross entropy.
    Interactions: the logits must lie in the order of the levels. It replaces the model's criterion, so its class
    weights are lost. Under Mixup a target has the mean and the spread of its mixture.

    Example:
        >>> import torch
        >>> SoftScoreLabelLoss()(torch.zeros(1, 2), torch.tensor([0]))  # cross entropy
        tensor([0.6931])
    """

    function = staticmethod(soft_score_label_loss)
    family = "overconfidence"
    problems = ("classes",)
    example: ClassVar[dict[str, Any]] = {"least_std": 0.5}

    def __init__(self, *, least_std: float = 0.0, density: Density = "pdf") -> None:
        super().__init__()
        _check(least_std, density)
        self.least_std = least_std
        self.density: Density = density

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) levels or (N, C) shares of them -> (N,) losses."""
        return soft_score_label_loss(logits, target, least_std=self.least_std, density=self.density)
