"""Variational information distillation (VID)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.distillation._layers import check_pairs, of_one_size
from lightning_objectives.kinds import Distillation

_LEAST = 1e-5
"""The least variance of a channel."""


class VID(Distillation):
    r"""Guides a student by hidden layers of its teacher, and learns which channels it can follow at all.

    .. math::
        \sum_l \frac{1}{D_l} \sum_c \frac12 \left( \frac{\|\mu_c(f_l) - f_{l,c}^{\text{teacher}}\|^2}{\sigma_c^2}
        + n_l \log \sigma_c^2 \right)

    with a trained network :math:`\mu` from the student's channels to the teacher's at each point (three linear maps
    with ReLUs between them), a trained variance :math:`\sigma_c^2` of each channel c of the teacher, :math:`n_l` the
    number of points, and :math:`D_l` that of the teacher's values. A channel that cannot be predicted gets a large
    variance, and counts less. Of maps of different sizes the larger is pooled to the smaller.

    Args:
        initial_variance: :math:`\sigma_c^2` at the start of the training, above 0.00001.

    Raises:
        ValueError: an ``initial_variance`` outside its range; in the training, layers that do not belong together.

    When to use: with ``Distill(VID(), teacher=..., layers=..., teacher_layers=...)``, for a student whose layers differ
    much from the teacher's: beside ``FitNets``, it need not match every channel. The weight is 1 in common practice.
    Cost: three matrices for each layer, trained with the network and gone afterwards; the outputs of the layers in
    memory.
    Interactions: the logged term may be negative. Beside a distance of the logits, with a ``Distill`` of its own.

    Example:
        >>> method = VID()
        >>> method.build(hidden=(2,), teacher_hidden=(3,))
        >>> method.networks[0]
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=False)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=3, bias=False)
          (3): ReLU()
          (4): Linear(in_features=3, out_features=3, bias=False)
        )

    Paper: Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019,
    https://arxiv.org/abs/1904.05835. The form of the network and of the variance is that of a copy of the
    authors' code; not checked in their own repository.
    """

    unkept_laws: ClassVar = {
        "it_is_least_where_the_student_equals_the_teacher": "the student's layers are compared after a trained map"
    }

    def __init__(self, *, initial_variance: float = 5.0) -> None:
        super().__init__()
        if not _LEAST < initial_variance < math.inf:
            raise ValueError(f"initial_variance={initial_variance} must be > {_LEAST} and finite; usual is 5.")
        self.initial_variance = initial_variance
        self.networks = nn.ModuleList()
        self.spreads = nn.ParameterList()

    def build(self, *, hidden: Sequence[int], teacher_hidden: Sequence[int]) -> None:
        """New networks from each of the student's layers to the teacher's, and new variances."""
        pairs = list(zip(hidden, teacher_hidden))
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(own, other, bias=False),
                nn.ReLU(),
                nn.Linear(other, other, bias=False),
                nn.ReLU(),
                nn.Linear(other, other, bias=False),
            )
            for own, other in pairs
        )
        # The inverse of the softplus; expm1 of a large variance would overflow.
        free = self.initial_variance - _LEAST
        start = free + math.log(-math.expm1(-free))
        self.spreads = nn.ParameterList(torch.full((other,), start) for _, other in pairs)

    def forward(self, hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor]) -> Tensor:
        """Maps (N, channels, ...) of the student and of the teacher -> (N,) negative log likelihoods."""
        check_pairs(hidden, teacher_hidden)
        distances = []
        for network, spread, *maps in zip(self.networks, self.spreads, hidden, teacher_hidden):
            own, other = (values.movedim(1, -1) for values in of_one_size(*maps))
            mean = network(own.to(spread.dtype))
            wide = torch.promote_types(mean.dtype, torch.float32)
            variance = F.softplus(spread.to(wide)) + _LEAST
            squares = (mean.to(wide) - other.detach().to(wide)).square()
            distances.append((squares / variance + variance.log()).flatten(1).mean(1) / 2)
        return torch.stack(distances).sum(0)
