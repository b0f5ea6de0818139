"""DARE: a merge that drops most changes of each network at random, and enlarges the others."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.merging._changes import checked_base, dropped, needed, with_changes


def dare_merge(
    weights: Sequence[Tensor],
    *,
    base: Tensor,
    drop: float = 0.9,
    scale: float = 1.0,
    elect_signs: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Compute the base plus the changes of each network: random ones are dropped, and the others enlarged.

    .. math::
        \theta = \theta_0 + \lambda \sum_k \frac{m_k \odot (\theta_k - \theta_0)}{1 - p}, \qquad
        m_{k,j} \sim \operatorname{Bernoulli}(1 - p)

    so that the expected change of each network is its own.

    Args:
        weights: K tensors of one shape, in any float or complex type; a complex number is kept or dropped as a whole.
        base: :math:`\theta_0`, of the same shape: what all networks were fine-tuned from.
        drop: :math:`p` in [0, 1); 0 drops nothing.
        scale: :math:`\lambda`, the factor of the merged change.
        elect_signs: take the mean of the changes of the stronger sign instead of the sum of all of them, as TIES does
            (DARE-TIES).
        generator: of the draws; without it, they come from the global stream. The networks draw one after the other.

    Returns:
        a new tensor of the same shape, in float32 or wider; the base, to the bit, wherever no change is left.

    Raises:
        ValueError: the shapes differ, there is no network, or a setting is out of range.

    Example:
        >>> weights = [torch.tensor([2.0, 1.0]), torch.tensor([0.0, 4.0])]
        >>> dare_merge(weights, base=torch.ones(2), drop=0.0)
        tensor([1., 4.])

    Paper: Yu et al., Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch, ICML
    2024, https://arxiv.org/abs/2311.03099.

    Differs from the paper: its code has no seed, and takes any ``drop`` up to 1, which leaves the base. mergekit does
    not divide by :math:`1 - p`, as the paper does: it keeps the sum of the magnitudes of each tensor as it was, so that
    the expected change of a large one is smaller than its own, and that of a small one greater.
    """
    _check(drop, scale)
    base = checked_base(base, weights)
    opposites = (dropped(base - weight, drop, generator) for weight in weights)
    return with_changes(base, opposites, scale=scale, elect_signs=elect_signs)


def _check(drop: float, scale: float) -> None:
    if not 0 <= drop < 1:
        raise ValueError(
            f"drop={drop} must be in [0, 1): the part of the changes to drop. At 1 nothing is left to merge."
        )
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be finite; 1 adds the changes as they are.")


class DARE(Merge):
    """Merges fine-tuned networks after dropping most of their changes by chance, so that they disturb each other less.

    The merge is that of :func:`dare_merge`, with draws that depend on the seed and the name of each tensor alone.

    Args:
        drop: the part of the changes that is dropped, in [0, 1). The paper drops 0.9 of one network without harm, and
            its code merges with 0.2: choose it on a validation set.
        scale: the factor of the merged change; choose it on a validation set too.
        elect_signs: let the changes of each weight agree on a sign first (DARE-TIES).

    Raises:
        ValueError: a setting is out of range.

    When to use: if large networks were fine-tuned from the same base, with small changes: about 0.005 at the most,
    where most of them are redundant. With larger changes lower ``drop``, or use :class:`TIES`, which keeps the largest.
    Cost: one pass over the files and the base, a small part of a tensor at a time.
    Interactions: it needs the base. Another ``seed`` gives another merge, and so does another order of the files. Name
    floating buffers, such as BatchNorm's statistics, with ``buffers=``: otherwise their changes are dropped too. Heads
    of different classes cannot be merged.

    Example:
        >>> DARE(drop=0.0, elect_signs=True).tensor([torch.tensor([3.0]), torch.tensor([0.5])], base=torch.ones(1))
        tensor([3.])

    Paper: Yu et al., Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch, ICML
    2024, https://arxiv.org/abs/2311.03099.
    """

    linear = False
    asks = ("base",)
    by_element = True
    unkept_laws: ClassVar = {
        "the_order_of_the_files_means_nothing": "each file has draws of its own, by its place",
        "parts_of_a_tensor_make_no_difference": "each part has draws of its own",
    }

    def __init__(self, *, drop: float = 0.9, scale: float = 1.0, elect_signs: bool = False) -> None:
        _check(drop, scale)
        self.drop = drop
        self.scale = scale
        self.elect_signs = elect_signs

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
        return dare_merge(weights, base=needed(base, self), generator=generator, **self.settings())
