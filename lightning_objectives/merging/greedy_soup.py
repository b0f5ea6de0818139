"""Greedy soup: the mean of those of several networks that raise a validation score together."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.shapes import check_steps


def greedy_soup_coefficients(
    evaluate: Callable[[Tensor], float], steps: Sequence[int], *, strict: bool = False
) -> Tensor:
    r"""Find the shares of a plain mean of those files that raise a score together.

    The files are tried once each, from the best score to the worst. A file joins the soup S if the mean stays at least
    as good:

    .. math::
        S \leftarrow S \cup \{k\} \quad \text{if} \quad
        \operatorname{score}(\operatorname{mean} \theta_{S \cup \{k\}}) \ge
        \operatorname{score}(\operatorname{mean} \theta_S)

    Args:
        evaluate: gives the score of a merge by its (K,) shares; greater is better.
        steps: K increasing numbers; only their number counts.
        strict: a file must raise the score, :math:`>`, to join.

    Returns:
        (K,) float64 shares: 1 / n for the n files of the soup, 0 for the others. Files of equal scores are tried in the
        given order.

    Raises:
        ValueError: the score of a single file is NaN.

    Example:
        >>> values = torch.tensor([2.1, 1.9, 2.4, 3.0], dtype=torch.float64)
        >>> score = lambda shares: round(1 - abs(float(shares @ values) - 2) / 10, 1)
        >>> greedy_soup_coefficients(score, [0, 1, 2, 3])
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)

    Paper: Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time, ICML 2022, recipe 1, https://arxiv.org/abs/2203.05482.

    Differs from the paper's code: the code is ``strict``, and tries files of equal scores from the last to the first.
    """
    count = len(check_steps(steps))
    singles = torch.eye(count, dtype=torch.float64)
    if count == 1:
        return singles[0]
    scores = [float(evaluate(single)) for single in singles]
    failed = [place for place, score in enumerate(scores) if math.isnan(score)]
    if failed:
        raise ValueError(f"evaluate returned nan for the files {failed} (the first is 0) alone: leave these files out.")
    order = sorted(range(count), key=lambda place: -scores[place])
    soup, best = singles[order[0]], scores[order[0]]
    for place in order[1:]:
        together = ((soup + singles[place]) > 0).double()
        together /= together.sum()
        score = float(evaluate(together))
        if score > best or (score == best and not strict):
            soup, best = together, score
    return soup


class GreedySoup(Merge):
    """Averages those of several fine-tuned networks that raise a validation score together.

    The shares are those of :func:`greedy_soup_coefficients`.

    Args:
        strict: a file must raise the score to join the soup; otherwise it may also leave it as it is.

    When to use: if you fine-tuned one network with several settings or seeds, and would keep the best. The soup is
    never worse on the set that it is evaluated on, and costs no more at inference. Report the score on another set.
    Cost: 2 K - 1 evaluations for K files, each with one merge in memory.
    Interactions: give ``evaluate`` to :func:`merge_checkpoints`. Re-estimate the statistics of BatchNorm inside of it,
    because the means of the files' statistics are not those of the soup.

    Example:
        >>> GreedySoup().search(lambda shares: float(shares[1]), [0, 1])  # the second file is better alone
        tensor([0., 1.], dtype=torch.float64)
    """

    function = staticmethod(greedy_soup_coefficients)
    callback = ""  # A training that has ended has no validation left to evaluate soups with.
    asks = ("evaluate",)

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict

    def search(self, evaluate: Callable[[Tensor], float], steps: Sequence[int]) -> Tensor:
        """The (K,) shares of the soup of K files."""
        return greedy_soup_coefficients(evaluate, steps, strict=self.strict)
