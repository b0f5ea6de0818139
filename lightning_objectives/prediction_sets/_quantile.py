"""The quantile that all conformal methods take of their scores."""

from fractions import Fraction

import torch
from torch import Tensor

from lightning_objectives.shapes import check_classes, check_shapes, forms

_FORMS = {"scores": forms("(N,) float")}


def conformal_quantile(scores: Tensor, *, alpha: float = 0.1) -> Tensor:
    r"""Compute the threshold that a new score stays below with a probability of at least :math:`1 - \alpha`.

    .. math::
        \hat q = s_{(k)}, \quad k = \lceil (n + 1)(1 - \alpha) \rceil

    with the scores :math:`s_{(1)} \le \dots \le s_{(n)}` in order, and :math:`\infty` if :math:`k > n`. If the new
    score and the n scores are exchangeable, it is at most :math:`\hat q` with this probability, for any n. If there are
    no ties, the probability is :math:`k / (n + 1)`.

    Args:
        scores: (N,) float, none of them NaN.
        alpha: :math:`\alpha` in (0, 1), taken as the decimal number that Python writes.

    Returns:
        () in the type of the scores.

    Raises:
        ValueError: scores that are not (N,), a NaN, or alpha outside (0, 1).

    Example:
        >>> conformal_quantile(torch.arange(1.0, 20.0), alpha=0.1)  # the 18th of 19
        tensor(18.)
        >>> conformal_quantile(torch.arange(8.0), alpha=0.1)  # 9 are needed
        tensor(inf)

    Paper: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Romano, Sesia and Candès,
    Classification with Valid and Adaptive Coverage, NeurIPS 2020, algorithm 1, https://arxiv.org/abs/2006.02544.
    """
    check_shapes(_FORMS, scores=scores)
    check_alpha(alpha)
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN: leave their rows out.")
    count = len(scores)
    # In floats (n + 1)(1 - alpha) may exceed a whole number by its last bit, and the next greater score would be taken.
    rank = count + 1 - int(Fraction(str(alpha)) * (count + 1))
    if rank > count:
        return scores.new_full((), torch.inf)
    return scores.sort().values[rank - 1]


def check_alpha(alpha: float) -> None:
    """Refuse an ``alpha`` that is no share."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must be in (0, 1): 0.1 means that one target of ten may lie outside its set.")


def check_rows(logits: Tensor, target: Tensor) -> None:
    """Refuse what no set predictor can be fitted on: wrong shapes, soft targets, logits that are not finite.

    Raises:
        ValueError: with the way out.
    """
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    if target.is_floating_point():
        raise ValueError(
            f"target of the shape {tuple(target.shape)} holds probabilities, but a set holds the target or does not: "
            "pass one class for each row, such as target.argmax(1)."
        )
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(
            f"{bad} of {len(logits)} samples have logits that are not finite: leave them out, or mend the network."
        )
