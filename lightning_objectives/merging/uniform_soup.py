"""Uniform soup: the plain mean of several networks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.shapes import check_steps


def uniform_soup_coefficients(steps: Sequence[int]) -> Tensor:
    r"""Compute equal shares, :math:`1 / K` for each of K files.

    Args:
        steps: K increasing numbers; only their number counts.

    Returns:
        (K,) float64 shares.

    Raises:
        ValueError: there are no steps, or they do not increase.

    Example:
        >>> uniform_soup_coefficients([0, 1, 2, 3])
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)

    Paper: Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time, ICML 2022, table 1, https://arxiv.org/abs/2203.05482.
    """
    count = len(check_steps(steps))
    return torch.full((count,), 1 / count, dtype=torch.float64)


class UniformSoup(Merge):
    """Averages several fine-tuned networks, each with the same share, into one that is often better than the best.

    The shares are those of :func:`uniform_soup_coefficients`. The files may be of different trainings:
    ``merge_checkpoints`` takes them as you list them, and whole numbers are those of the last.

    When to use: if you fine-tuned one network several times and have no validation set left to choose with. With one,
    :class:`GreedySoup` leaves out what does harm. For checkpoints of one training take :class:`WSM`, whose
    ``shape="linear"`` is the same mean with the steps taken into account.
    Cost: one pass over the files.
    Interactions: the networks must have begun with the same weights, or their mean means nothing. Re-estimate the
    statistics of BatchNorm.

    Example:
        >>> UniformSoup().coefficients([10, 20])
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    function = staticmethod(uniform_soup_coefficients)

    @classmethod
    def uses_steps(cls) -> bool:
        """They do not matter, so files of any steps may be merged in any order."""
        return False

    def coefficients(self, steps: Sequence[int]) -> Tensor:
        """(K,) increasing steps -> (K,) equal shares."""
        return uniform_soup_coefficients(steps)
