"""Model Breadcrumbs: a merge of networks of different tasks by changes that are neither tiny nor huge."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.merging._changes import checked_base, needed, with_changes


def breadcrumbs_merge(
    weights: Sequence[Tensor], *, base: Tensor, beta: float = 0.85, gamma: float = 0.006, scale: float = 0.2
) -> Tensor:
    r"""Compute a merge of fine-tuned weights in which neither the smallest nor the largest changes count.

    Of the change :math:`\tau_k = \theta_k - \theta_0` of each network, the share :math:`\beta` of the smallest
    magnitude and the share :math:`\gamma` of the largest are set to 0, and the rest is added up:

    .. math::
        \theta_j = \theta_{0,j} + \alpha \sum_k m_{k,j} \, \tau_{k,j}, \qquad
        m_{k,j} = \lfloor \beta n \rfloor < r_{k,j} \le n - \lfloor \gamma n \rfloor

    with n the number of weights in the tensor, and :math:`r_{k,j}` the rank of :math:`|\tau_{k,j}|` among them, 1 for
    the smallest.

    Args:
        weights: K tensors of one shape, in any float or complex type; complex numbers have one magnitude.
        base: :math:`\theta_0`, of the same shape: what all networks were fine-tuned from.
        beta: :math:`\beta \ge 0`, the share of the smallest changes that is left out.
        gamma: :math:`\gamma \ge 0`, the share of the largest changes that is left out; with ``beta`` below 1.
        scale: :math:`\alpha`, the factor of the sum.

    Returns:
        a tensor of the same shape; the base, to the bit, wherever no change is left.

    Raises:
        ValueError: the shapes differ, there is no network, ``beta`` and ``gamma`` leave nothing, or ``scale`` is not
            finite.

    Example:
        >>> tau = torch.tensor([[0.1, -2.0, 9.0, 1.0], [-8.0, 0.2, 3.0, 4.0]])
        >>> breadcrumbs_merge([*tau], base=torch.zeros(4), beta=0.25, gamma=0.25, scale=1.0)
        tensor([ 0., -2.,  3.,  5.])

    Paper: Davari and Belilovsky, Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks, ECCV 2024,
    https://arxiv.org/abs/2312.06795.

    Differs from the paper's code: the code ranks the changes within each row (the last dimension) and not within the
    tensor, and takes the share that it keeps as ``beta``, 0.15 for 0.85 here. mergekit's ``breadcrumbs`` ranks within
    the tensor, as here; its ``density`` is 1 - beta - gamma here. Of equal magnitudes, the later in the tensor counts
    as the larger. The numbers of changes left out are rounded down, so that small tensors lose fewer of them: below
    1 / ``gamma`` weights, no large one.

    The formula is that of the authors' code (https://github.com/rezazzr/breadcrumbs), and agrees with mergekit's. Not
    checked at the source: the text of the paper, whose letters could be others. mergekit's guide calls the share of the
    largest the paper's :math:`\beta`; the authors' code calls it gamma.
    """
    _check(beta, gamma, scale)
    base = checked_base(base, weights)
    return with_changes(base, (_masked(base - w, beta, gamma) for w in weights), scale=scale, elect_signs=False)


def _check(beta: float, gamma: float, scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be finite; choose it on a validation set, for example from 0.1 to 1.")
    if not (beta >= 0 and gamma >= 0 and beta + gamma < 1):
        raise ValueError(
            f"beta={beta} and gamma={gamma} must be >= 0 and below 1 together: they are the shares of the smallest and "
            "of the largest changes that are left out."
        )


def _masked(change: Tensor, beta: float, gamma: float) -> Tensor:
    """The change without its smallest and its largest elements."""
    order = change.abs().flatten().argsort(stable=True)
    n = len(order)
    kept = torch.zeros(n, dtype=torch.bool, device=change.device)
    kept[order[int(beta * n) : n - int(gamma * n)]] = True
    return change.where(kept.view(change.shape), 0.0)


class ModelBreadcrumbs(Merge):
    r"""Merges networks that were fine-tuned from one base, without the changes that are tiny or outliers.

    The merge is that of :func:`breadcrumbs_merge`, masked in each tensor by itself.

    Args:
        beta: :math:`\beta \ge 0`, the share of each tensor's smallest changes that is left out.
        gamma: :math:`\gamma \ge 0`, the share of each tensor's largest changes that is left out; with ``beta`` below 1.
        scale: :math:`\alpha`, the factor of the sum. The defaults are those from which the authors' search begins; it
            looks for ``beta`` in 0.8 to 0.95, and for ``gamma`` in 0.001 to 0.01.

    Raises:
        ValueError: ``beta`` or ``gamma`` is negative, or together they are 1 or more; ``scale`` is not finite.

    When to use: if several networks were fine-tuned from the same base on different tasks, one network must do all of
    them, and a few very large changes spoil a sum of them. :class:`TIES` also settles changes of different signs.
    Cost: one pass over the files, and a sort of the changes of each tensor.
    Interactions: it needs the base. Name floating buffers, such as BatchNorm's statistics, with ``buffers=``:
    otherwise they are masked like weights. The sum grows with the number of networks; choose ``scale`` by validation.

    Example:
        >>> weights = [torch.tensor([0.1, -2.0, 9.0, 1.0])]
        >>> ModelBreadcrumbs(beta=0.25, gamma=0.25, scale=0.5).tensor(weights, base=torch.zeros(4))
        tensor([ 0.0000, -1.0000,  0.0000,  0.5000])
    """

    function = staticmethod(breadcrumbs_merge)
    linear = False
    asks = ("base",)

    def __init__(self, *, beta: float = 0.85, gamma: float = 0.006, scale: float = 0.2) -> None:
        _check(beta, gamma, scale)
        self.beta = beta
        self.gamma = gamma
        self.scale = scale

    def tensor(
        self,
        weights: Sequence[Tensor],
        *,
        base: Tensor | None = None,
        importance: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        statistics: Any = None,
    ) -> Tensor:
        """The merge of one tensor, masked by its own ranks."""
        base = needed(base, self)
        return breadcrumbs_merge(weights, base=base, beta=self.beta, gamma=self.gamma, scale=self.scale)
