"""Group distributionally robust optimisation."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes


class GroupDRO(Weighting):
    r"""Trains for the worst of several groups of samples: groups with a high loss get more and more weight.

    Each batch updates the shares :math:`q` of the groups, and weights the samples by the new shares:

    .. math::
        q_g \propto q_g \, e^{\eta (L_g + C / \sqrt{n_g})}, \qquad w_i \propto \frac{q_{g_i}}{N_{g_i}}

    with :math:`L_g` the mean loss of the group's :math:`N_g` samples in the batch, 0 if there are none. The shares
    start equal, and are saved with the callback's state.

    Args:
        group_counts: :math:`n`, the number of training samples of each group. The groups are numbered from 0.
        step_size: :math:`\eta \ge 0`; 0 keeps the groups equal. The authors' code uses 0.01.
        adjustment: :math:`C \ge 0`, which favours small groups, whose losses generalise less. The default is 0.

    Returns:
        ``forward(losses, group)`` gives (N,) weights >= 0 with mean 1, float32 at least, without gradient. A non-finite
        loss gets the weight 0 and does not count in its group; the others have mean 1 among themselves. If no loss is
        finite, every weight is 1.

    Raises:
        ValueError: fewer than two groups, a count that is not positive, or a setting outside its range.

    When to use: if you know the groups (a background, a hospital, a language) and judge by the worst of them. The paper
    needs strong regularisation beside it (weight decay, early stopping), because a network that fits all samples is
    good on all training groups. Draw batches in which every group is present.
    Cost: one all-gather of the losses and groups.
    Interactions: a batch without a group has the mean loss of the others, weighted by their shares. The loss that the
    model logs is the weighted one; the unweighted loss is logged beside it. Do not use with a balanced sampler of
    groups and an ``adjustment`` by their raw counts at once.

    Example:
        >>> method = GroupDRO(group_counts=(30, 10), step_size=0.5)
        >>> method(torch.tensor([0.0, 0.0, 0.0, 2.0]), torch.tensor([0, 0, 0, 1]))  # q = 1 / (1 + e), e / (1 + e)
        tensor([0.3586, 0.3586, 0.3586, 2.9242])

    Paper: Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020,
    https://arxiv.org/abs/1911.08731.

    Differs from the authors' code: the weights have the mean 1 also if a group is absent, so the loss is divided by the
    shares of the groups that are present. The adjustment acts on the shares alone, and not on the logged loss.
    """

    family = "group shift"
    example: ClassVar[dict[str, Any]] = {"group_counts": (30, 10)}
    log_shares: Tensor

    def __init__(self, *, group_counts: Sequence[float], step_size: float = 0.01, adjustment: float = 0.0) -> None:
        super().__init__()
        for name, value in (("step_size", step_size), ("adjustment", adjustment)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be >= 0 and finite.")
        self.group_counts = tuple(group_counts)
        if len(self.group_counts) < 2 or not all(0 < count < float("inf") for count in self.group_counts):
            raise ValueError(
                f"group_counts={self.group_counts} must have a number > 0 for each of two groups or more: count the "
                "training samples of each group."
            )
        self.step_size = step_size
        self.adjustment = adjustment
        groups = len(self.group_counts)
        self.register_buffer("log_shares", torch.full((groups,), -math.log(groups)))
        added = torch.tensor([adjustment / math.sqrt(count) for count in self.group_counts])
        self.register_buffer("_added", added, persistent=False)

    def forward(self, losses: Tensor, group: Tensor) -> Tensor:
        """(N,) losses and (N,) groups -> (N,) weights; updates the shares."""
        check_shapes(losses=losses, group=group)
        losses, group = losses.detach().to(torch.promote_types(losses.dtype, torch.float32)), group.long()
        finite = losses.isfinite()
        sums, counts = losses.new_zeros(2, len(self.group_counts))
        sums = sums.index_add(0, group, torch.where(finite, losses, 0.0))
        counts = counts.index_add(0, group, finite.to(losses.dtype))
        risks = sums / counts.clamp_min(1) + self._added
        self.log_shares = (self.log_shares + self.step_size * risks).log_softmax(0).to(self.log_shares.dtype)
        logs = torch.where(finite, (self.log_shares.to(losses.dtype) - counts.log())[group], -torch.inf)
        return torch.where(finite.any(), logs.softmax(0) * finite.sum(), 1.0)
