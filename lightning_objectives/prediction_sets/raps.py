"""Regularized adaptive prediction sets."""

import math

import torch
from torch import Tensor

from lightning_objectives.prediction_sets.aps import APS, aps_scores


def raps_scores(p: Tensor, u: Tensor, *, penalty: float = 0.01, free_classes: int = 5) -> Tensor:
    r"""Compute the scores of :func:`~lightning_objectives.prediction_sets.aps_scores`, and a penalty for low ranks.

    .. math::
        s_c = \sum_{c' \text{ before } c} p_{c'} + u \, p_c + \lambda \, (o_c - k_{reg})^+

    where the classes are in the order of their probabilities, the greatest first, and of equal ones the lower index.
    :math:`o_c` is the rank of class c in this order, 1 for the first.

    Args:
        p: (N, C) probabilities.
        u: (N,) in [0, 1]: draws from the uniform distribution, one for each row.
        penalty: :math:`\lambda \ge 0`, what each rank after the free ones costs; 0 gives the scores of APS.
        free_classes: :math:`k_{reg} \ge 0`, how many classes of each row cost nothing.

    Returns:
        (N, C) scores, in the type of the probabilities.

    Raises:
        ValueError: shapes that do not fit, a negative or infinite penalty, or free classes that are no whole number
            from 0 on.

    Example:
        >>> p, u = torch.tensor([[0.3, 0.6, 0.1]]), torch.tensor([0.5])
        >>> raps_scores(p, u, penalty=0.2, free_classes=1)  # APS: 0.75, 0.30, 0.95
        tensor([[0.9500, 0.3000, 1.3500]])

    Paper: Angelopoulos, Bates, Malik and Jordan, Uncertainty Sets for Image Classifiers using Conformal Prediction,
    ICLR 2021, https://arxiv.org/abs/2009.14193.
    """
    _check(penalty, free_classes)
    scores = aps_scores(p, u)
    order = p.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(1, p.shape[1] + 1, device=p.device)
    penalties = penalty * (ranks - free_classes).clamp(min=0).to(p.dtype)
    return scores + torch.empty_like(scores).scatter(1, order, penalties.expand_as(scores))


def _check(penalty: float, free_classes: int) -> None:
    if not 0 <= penalty < math.inf:
        raise ValueError(f"penalty={penalty} must be a number >= 0; 0 is APS.")
    if not (free_classes >= 0 and float(free_classes).is_integer()):
        raise ValueError(f"free_classes={free_classes} must be a whole number >= 0; 0 penalizes the top class too.")


class RAPS(APS):
    r"""Predicts sets as APS does, but classes of low rank enter them less easily, so that large sets become smaller.

    The probabilities of a network's many unlikely classes are mostly noise, and the sets of
    :class:`~lightning_objectives.prediction_sets.APS` take many of them in. Here the scores are those of
    :func:`raps_scores`, and everything else is as in APS: the probability that a set holds the target is at least
    :math:`1 - \alpha`, for any penalty that was chosen without the samples of the fit.

    Args:
        alpha: :math:`\alpha`, the share of targets that may lie outside; the paper's experiments take 0.1.
        penalty: :math:`\lambda \ge 0`, what each rank after the free ones costs, in probability; 0 is APS. With 1 or
            more, the sizes of all sets that are larger than the free classes differ by one at most.
        free_classes: :math:`k_{reg} \ge 0`, how many classes of each row cost nothing. The paper takes the size of the
            sets of one fixed size that would cover enough.
        randomized: whether :math:`u` is drawn for each row, as in the paper. If not, :math:`u = 0`.
        allow_empty: whether a set may be empty. If not, it holds the top class.

    Raises:
        ValueError: alpha outside (0, 1), a negative or infinite penalty, or free classes that are no whole number from
            0 on; in ``fit``, soft targets, or logits that are not finite; logits with one class.

    When to use: if there are many classes, and the sets of APS are too large to be of use. With no more classes than
    the free ones it is APS.
    Cost: two sorts of the classes of each row.
    Interactions: as for APS. To choose a penalty, compare the sizes of the sets on samples that are neither those of
    the fit nor those of the test.

    Example:
        >>> sets = RAPS(alpha=0.5, penalty=0.2, free_classes=1, randomized=False)
        >>> logits = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.1, 0.8, 0.1]]).log()
        >>> sets.fit(logits, torch.tensor([1, 1, 1]))  # the scores 0.7, 0.6 and 0
        >>> sets(logits)
        tensor([[ True, False, False],
                [ True,  True, False],
                [False,  True, False]])

    Paper: Angelopoulos, Bates, Malik and Jordan, Uncertainty Sets for Image Classifiers using Conformal Prediction,
    ICLR 2021, https://arxiv.org/abs/2009.14193.

    Differs from the paper: :math:`u` is drawn as in APS, and the penalty and the free classes are settings, not found
    by a search over a part of the samples.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.1,
        penalty: float = 0.01,
        free_classes: int = 5,
        randomized: bool = True,
        allow_empty: bool = True,
    ) -> None:
        super().__init__(alpha=alpha, randomized=randomized, allow_empty=allow_empty)
        _check(penalty, free_classes)
        self.penalty = penalty
        self.free_classes = free_classes

    def _score(self, p: Tensor, u: Tensor) -> Tensor:
        return raps_scores(p, u, penalty=self.penalty, free_classes=self.free_classes)
