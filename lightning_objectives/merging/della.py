"""DELLA: a merge that drops changes at random, small ones more often than large ones."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.merging._changes import checked_base, dropped, needed, with_changes


def magnitude_drop_rates(change: Tensor, *, drop: float = 0.3, window: float = 0.14) -> Tensor:
    r"""Compute how likely each change is to be dropped: the smaller it is in its row, the likelier.

    .. math::
        p_i = p - \frac{\varepsilon}{2} + \frac{\varepsilon}{n} r_i

    where :math:`r_i` is the rank of the magnitude among the n of the row: 0 for the greatest, n - 1 for the smallest.
    The last dimension is a row. Of equal magnitudes the first has the lower rank.

    Args:
        change: (..., n), in any float or complex type.
        drop: :math:`p`, about the mean of the probabilities, in [0, 1).
        window: :math:`\varepsilon \ge 0`, how far they spread; 0 gives ``drop`` to all.

    Returns:
        (..., n) float32 probabilities; their mean is :math:`p - \varepsilon / 2n`.

    Raises:
        ValueError: ``drop`` less, or with, half of ``window`` is no probability below 1.

    Example:
        >>> magnitude_drop_rates(torch.tensor([0.1, -0.5, 0.3, 0.2, 0.4]), drop=0.4, window=0.2)
        tensor([0.4600, 0.3000, 0.3800, 0.4200, 0.3400])

    Paper: Deep et al., DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling, 2024,
    https://arxiv.org/abs/2406.11617.

    Differs from the paper's code: the code divides the ranks by n - 1, so that the probabilities spread over the whole
    window and their mean is :math:`p`; a row of one gives 0 / 0 there. The difference is at most
    :math:`\varepsilon / n`.

    Not checked at the source: that the paper's text divides by n, as PaddleNLP's code does.
    """
    _check(drop, window)
    length = change.shape[-1] if change.dim() else 1
    rates = torch.arange(length, device=change.device) * (window / max(1, length)) + (drop - window / 2)
    order = change.abs().reshape(change.shape or (1,)).argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(order, dtype=rates.dtype).scatter(-1, order, rates.expand_as(order)).view(change.shape)


def della_merge(
    weights: Sequence[Tensor],
    *,
    base: Tensor,
    drop: float = 0.3,
    window: float = 0.14,
    scale: float = 1.0,
    elect_signs: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Compute the base plus the changes of each network: random ones are dropped, small ones more often.

    Each change is dropped with its :math:`p_i` of :func:`magnitude_drop_rates`, and divided by :math:`1 - p_i`
    otherwise, so that the expected change of each network is its own. Then the changes of each weight elect a sign and
    those of that sign are averaged, as :func:`ties_merge` does it without a trim.

    Args:
        weights: K tensors of one shape, in any float or complex type; a complex number is kept or dropped as a whole.
        base: of the same shape: what all networks were fine-tuned from.
        drop: :math:`p` in [0, 1).
        window: :math:`\varepsilon \ge 0`; 0 is :func:`dare_merge` with ``elect_signs``.
        scale: the factor of the merged change.
        elect_signs: if False, the sum of all changes is taken instead.
        generator: of the draws; without it, they come from the global stream. The networks draw one after the other.

    Returns:
        a new tensor of the same shape, in float32 or wider; the base, to the bit, wherever no change is left.

    Raises:
        ValueError: the shapes differ, there is no network, or a setting is out of range.

    Example:
        >>> weights = [torch.tensor([2.0, 1.0]), torch.tensor([0.0, 4.0])]
        >>> della_merge(weights, base=torch.ones(2), drop=0.0, window=0.0, elect_signs=False)
        tensor([1., 4.])

    Paper: Deep et al., DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling, 2024,
    https://arxiv.org/abs/2406.11617.

    Checked against the paper's code, which divides each change by its own :math:`1 - p_i` too. Differs from mergekit:
    its epsilon is half of this window, and it multiplies all kept changes of a tensor by one factor, so that the
    expected change of a large one is greater than its own, and that of a small one smaller.
    """
    _check(drop, window)
    _check_scale(scale)
    base = checked_base(base, weights)
    opposites = (base - weight for weight in weights)
    kept = (dropped(o, magnitude_drop_rates(o, drop=drop, window=window), generator) for o in opposites)
    return with_changes(base, kept, scale=scale, elect_signs=elect_signs)


def _check(drop: float, window: float) -> None:
    if not 0 <= drop < 1:
        raise ValueError(
            f"drop={drop} must be in [0, 1): the part of the changes to drop. At 1 nothing is left to merge."
        )
    if not (window >= 0 and drop - window / 2 >= 0 and drop + window / 2 < 1):
        raise ValueError(
            f"window={window} must be >= 0, and drop={drop} with half of it more or less must be in [0, 1): use at "
            f"most {2 * min(drop, 1 - drop):g}."
        )


def _check_scale(scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be finite; 1 takes the changes as they are.")


class DELLA(Merge):
    """Merges fine-tuned networks after dropping changes by chance, the small ones more often than the large ones.

    The merge is that of :func:`della_merge`, with draws that depend on the seed and the name of each tensor alone. A
    row is the last dimension of a tensor: the weights of one output of a linear layer.

    Args:
        drop: about the part of the changes that is dropped, in [0, 1). Choose it on a validation set; 0.3 is the
            example of the paper's code.
        window: how much likelier the smallest change of a row is to be dropped than the largest, in probability.
        scale: the factor of the merged change; 1.1 is the example of the paper's code.
        elect_signs: let the changes of each weight agree on a sign first.

    Raises:
        ValueError: a setting is out of range.

    When to use: in place of :class:`DARE`, if the changes of the networks are of different sizes, so that the largest
    of them should stay more often.
    Cost: one pass over the files and the base, and a sort of each row of each file, some rows at a time.
    Interactions: it needs the base. Another ``seed`` gives another merge, and so does another order of the files. Name
    floating buffers, such as BatchNorm's statistics, with ``buffers=``: otherwise their changes are dropped too. Heads
    of different classes cannot be merged.

    Example:
        >>> DELLA(drop=0.0, window=0.0).tensor([torch.tensor([3.0]), torch.tensor([0.5])], base=torch.ones(1))
        tensor([3.])

    Paper: Deep et al., DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling, 2024,
    https://arxiv.org/abs/2406.11617.
    """

    linear = False
    asks = ("base",)
    by_row = True
    unkept_laws: ClassVar = {
        "the_order_of_the_files_means_nothing": "each file has draws of its own, by its place",
        "parts_of_a_tensor_make_no_difference": "each part has draws of its own",
    }

    def __init__(
        self, *, drop: float = 0.3, window: float = 0.14, scale: float = 1.0, elect_signs: bool = True
    ) -> None:
        _check(drop, window)
        _check_scale(scale)
        self.drop = drop
        self.window = window
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
        return della_merge(weights, base=needed(base, self), generator=generator, **self.settings())
