"""A mean of several networks, in which each has the share that you give it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.shapes import check_steps


def weighted_average_coefficients(steps: Sequence[int], *, shares: Sequence[float] | None = None) -> Tensor:
    r"""Compute the parts of a whole that given shares are, :math:`c_k = s_k / \sum_j s_j`.

    Args:
        steps: K increasing numbers; only their number counts.
        shares: K numbers :math:`s_k`, whose sum is above 0; None for equal ones. A negative one takes away: the shares
            (2, -1) lie as far beyond the first network as the second lies before it.

    Returns:
        (K,) float64 shares, whose sum is 1.

    Raises:
        ValueError: there are more or fewer shares than steps, one is not finite, or their sum is not above 0.

    Example:
        >>> weighted_average_coefficients([0, 1, 2], shares=[1, 2, 1])
        tensor([0.2500, 0.5000, 0.2500], dtype=torch.float64)

    Paper: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, https://arxiv.org/abs/2109.01903:
    the shares :math:`1 - \alpha` and :math:`\alpha` of two networks, as in the authors' code.
    """
    count = len(check_steps(steps))
    _check(shares)
    given = [1.0] * count if shares is None else list(shares)
    if len(given) != count:
        raise ValueError(f"shares={given} are {len(given)}, but there are {count} files: give one for each.")
    return torch.tensor(given, dtype=torch.float64) / math.fsum(given)


def _check(shares: Sequence[float] | None) -> None:
    if shares is not None and not (all(map(math.isfinite, shares)) and math.fsum(shares) > 0):
        raise ValueError(
            f"shares={list(shares)} must be finite numbers whose sum is above 0: one for each file, which is divided "
            "by the sum."
        )


class WeightedAverage(Merge):
    """Averages several networks with shares that you choose, such as a network before and after its fine-tuning.

    The shares are those of :func:`weighted_average_coefficients`. ``merge_checkpoints`` takes the files as you list
    them, and whole numbers are those of the last.

    Args:
        shares: one number for each file, in the order of the files; None for equal ones. Only their ratios count.

    Raises:
        ValueError: a share is not finite, their sum is not above 0, or, in a merge, there is not one for each file.

    When to use: if you know how much each network should count. The paper averages a pretrained network and the same
    network after a fine-tuning, half and half, which keeps more of what it could do on other data than the fine-tuned
    one alone. Without a reason for other shares take :class:`UniformSoup`; with a validation set, :class:`GreedySoup`.
    Cost: one pass over the files.
    Interactions: the networks must have begun with the same weights, or their mean means nothing. Re-estimate the
    statistics of BatchNorm.

    Example:
        >>> WeightedAverage(shares=[3, 1]).coefficients([0, 1])
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    function = staticmethod(weighted_average_coefficients)
    callback = ""  # A training may end with another number of snapshots than there are shares.

    def __init__(self, *, shares: Sequence[float] | None = None) -> None:
        _check(shares)
        self.shares = shares

    @classmethod
    def uses_steps(cls) -> bool:
        """They do not matter: the files are of different trainings."""
        return False

    def coefficients(self, steps: Sequence[int]) -> Tensor:
        """(K,) increasing steps -> (K,) shares."""
        return weighted_average_coefficients(steps, shares=self.shares)
