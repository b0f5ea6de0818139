"""Constrained learning: groups of samples whose mean loss shall stay below a limit."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes


class ConstrainedLearning(Weighting):
    r"""Lowers the mean loss, and keeps the loss of each group of samples below a limit of its own.

    This is dual ascent for the Lagrangian of the constrained problem:

    .. math::
        \bar\ell + \sum_g \mu_g (\ell_g - c_g), \qquad
        \mu_g \leftarrow \left[ \mu_g + \eta (\ell_g - c_g) \right]_+, \qquad
        w_i = 1 + \mu_{g_i} \frac{N}{N_{g_i}}

    with :math:`\ell_g` the mean loss of the group's :math:`N_g` samples in the batch. The multipliers begin at 0, move
    in each step by this step's losses, and are saved with the callback's state. A group without samples in the batch
    keeps its multiplier.

    Args:
        limits: :math:`c`, the mean loss that each group may have; infinity for a group without a limit. The groups are
            numbered from 0.
        step_size: :math:`\eta > 0`, how fast the multipliers move.

    Returns:
        ``forward(losses, group)`` gives (N,) weights >= 1, float32 at least, without gradient. Their mean is 1 plus the
        multipliers of the groups that are present. A non-finite loss gets the weight 0 and does not count in its group.

    Raises:
        ValueError: no limit, a limit that is not a number, or ``step_size`` not above 0.

    When to use: if you know the groups (a class, a hospital, a language) and how good is good enough for each. To train
    for the worst group without a limit use :class:`GroupDRO`; for a limit on every sample, :class:`FeasibleLearning`.
    Cost: one all-gather of the losses and groups.
    Interactions: limits that the network cannot reach let the multipliers grow without bound, and with them the step:
    watch ``max_weight``. The network of the last step is used, no average of all steps. Small groups make noisy
    multipliers: lower ``step_size``, or draw batches in which every group is present.

    Example:
        >>> method = ConstrainedLearning(limits=(1.0, 1.0), step_size=0.5)
        >>> method(torch.tensor([0.0, 0.0, 0.0, 2.0]), torch.tensor([0, 0, 0, 1]))  # multipliers 0 and 1/2
        tensor([1., 1., 1., 3.])

    Paper: Elenter et al., Near-Optimal Solutions of Constrained Learning Problems, ICLR 2024,
    https://arxiv.org/abs/2403.11844. Not checked at the source: the paper's step sizes, and how often it moves the
    multipliers.

    Differs from the paper: the constraints are the model's own loss on groups, one of the cases that the theory covers.
    Its experiments constrain other quantities, such as how much predictions change with a protected attribute.
    """

    family = "group shift"
    example: ClassVar[dict[str, Any]] = {"limits": (0.5, 0.5)}
    unkept_laws: ClassVar = {
        "equal_samples_weigh_the_same": "equal samples have equal weights, which are above 1 if the loss is too high",
        "one_weight_a_sample_and_their_mean_is_one": "multipliers come on top of the mean loss",
    }
    multipliers: Tensor

    def __init__(self, *, limits: Sequence[float], step_size: float = 0.1) -> None:
        super().__init__()
        self.limits = tuple(limits)
        if not self.limits or any(limit != limit for limit in self.limits):
            raise ValueError(f"limits={self.limits} must hold a number for each group; infinity is no limit.")
        if not 0 < step_size < float("inf"):
            raise ValueError(f"step_size={step_size} must be > 0 and finite.")
        self.step_size = step_size
        self.register_buffer("multipliers", torch.zeros(len(self.limits)))
        self.register_buffer("_limits", torch.tensor(self.limits, dtype=torch.float32), persistent=False)
        self._limits: Tensor

    def forward(self, losses: Tensor, group: Tensor) -> Tensor:
        """(N,) losses and (N,) groups -> (N,) weights; moves the multipliers."""
        check_shapes(losses=losses, group=group)
        losses, group = losses.detach().to(torch.promote_types(losses.dtype, torch.float32)), group.long()
        finite = losses.isfinite()
        sums, counts = losses.new_zeros(2, len(self.limits))
        sums = sums.index_add(0, group, torch.where(finite, losses, 0.0))
        counts = counts.index_add(0, group, finite.to(losses.dtype))
        moved = self.multipliers + self.step_size * (sums / counts.clamp_min(1) - self._limits)
        self.multipliers = torch.where(counts > 0, moved.clamp_min(0), self.multipliers).to(self.multipliers.dtype)
        added = self.multipliers.to(losses.dtype) * finite.sum() / counts.clamp_min(1)
        return torch.where(finite, 1 + added[group], 0.0)
