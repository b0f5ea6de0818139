"""Model Stock: a mean of a few networks, drawn back to their base by the angle between them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.merging._changes import checked_base, needed


def model_stock_merge(weights: Sequence[Tensor], *, base: Tensor) -> Tensor:
    r"""Compute the point between the base and the mean of some networks that is nearest to the centre of many.

    .. math::
        \theta = t \, \frac{1}{K} \sum_k \theta_k + (1 - t) \, \theta_0, \qquad
        t = \frac{K \cos \varphi}{1 + (K - 1) \cos \varphi}

    where :math:`\cos \varphi` is the mean cosine of the pairs of changes :math:`\theta_k - \theta_0`, each tensor taken
    as one vector. The networks are thought to lie around a centre, at equal distances and right angles: the more their
    changes differ, the more of them is chance, and the nearer to the base the centre lies.

    Args:
        weights: K tensors of one shape, in any float or complex type; complex numbers are pairs of weights. One alone
            is given back.
        base: :math:`\theta_0`, of the same shape: what all networks were fine-tuned from.

    Returns:
        a tensor of the same shape, in float32 or wider; the base, to the bit, wherever nothing has changed.

    Raises:
        ValueError: the shapes differ, or there is no network.

    Example:
        >>> weights = [torch.tensor([2.0, 1.0, 1.0]), torch.tensor([1.0, 3.0, 1.0])]
        >>> model_stock_merge(weights, base=torch.tensor([1.0, 1.0, 0.0]))  # cos = 1 / sqrt(10), t = 0.4805
        tensor([1.2403, 1.4805, 0.4805])

    Paper: Jang et al., Model Stock: All we need is just a few fine-tuned models, ECCV 2024,
    https://arxiv.org/abs/2403.19522.

    Differs from the paper: :math:`t` stays in [0, 1], so that changes that point away from each other leave the base;
    the formula alone would give less than 0, or divide by 0. A network that has not changed a tensor is at a right
    angle to the others there. mergekit does not hold :math:`t` within [0, 1], so that two changes with a cosine of -0.8
    give :math:`t = -8`. It divides by 1e-6 at least, so that it takes parallel changes of a norm far below 1e-3 for
    orthogonal ones.

    Not checked at the source: the mean over pairs of more than two networks. The paper's code is not public; mergekit
    takes the mean of the cosines too.
    """
    base = checked_base(base, weights)
    count, changed = len(weights), 0
    mean = torch.zeros_like(base)
    directions = torch.zeros_like(base, dtype=torch.promote_types(base.dtype, torch.float64))
    for weight in weights:
        # The opposite of the change; an infinity that base and network share is no change.
        pull = torch.where(base == weight, 0.0, base - weight)
        mean = mean + pull / count
        exact = pull.to(directions.dtype)
        length = float(torch.linalg.vector_norm(exact))
        if length != 0:
            directions += exact / length
            changed += 1
    # The squared length of a sum of n unit vectors is n and twice the sum of the cosines of their pairs.
    twice = float(directions.abs().square().sum()) - changed
    cosine = twice / (count * (count - 1)) if count > 1 else 1.0
    share = min(1.0, count * cosine / (1 + (count - 1) * cosine)) if cosine > 0 else 0.0
    return base - share * mean


class ModelStock(Merge):
    """Averages two or a few networks of one base, and draws the mean back to the base as far as they disagree.

    The merge of each tensor is that of :func:`model_stock_merge`.

    When to use: if you fine-tuned one network on one task two or three times, with other seeds or orders of the data,
    and would like the mean of many such networks. For networks of different tasks take :class:`TIES`.
    Cost: one pass over the files and the base, with three copies of one tensor, one of them in float64.
    Interactions: it needs the base. Tensors of one number are parallel or opposite to each other: with two networks
    such a tensor is their mean, or the base. Name floating buffers, such as BatchNorm's statistics, with ``buffers=``,
    and re-estimate BatchNorm's statistics after the merge. A head that did not exist in the base cannot be merged.

    Example:
        >>> ModelStock().tensor([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], base=torch.zeros(2))
        tensor([0., 0.])
    """

    function = staticmethod(model_stock_merge)
    linear = False
    asks = ("base",)

    def tensor(
        self,
        weights: Sequence[Tensor],
        *,
        base: Tensor | None = None,
        importance: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        statistics: Any = None,
    ) -> Tensor:
        """The merge of one tensor."""
        return model_stock_merge(weights, base=needed(base, self))
