"""FitNets: hidden layers of the student are trained to predict those of the teacher."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.distillation._layers import check_pairs, of_one_size
from lightning_objectives.kinds import Distillation


class FitNets(Distillation):
    r"""Guides a student by hidden layers of its teacher, not by its outputs alone.

    .. math::
        \sum_l \frac{1}{D_l} \left\| r_l(f_l) - f_l^{\text{teacher}} \right\|^2

    with a trained linear map :math:`r_l` from the student's channels to the teacher's at each point, and :math:`D_l`
    the number of the teacher's values. Of maps of different sizes the larger is pooled to the smaller.

    When to use: with ``Distill(FitNets(), teacher=..., layers=..., teacher_layers=..., weight=100)``, for a student
    that is thinner or deeper than its teacher. 100 is common practice. Take both layers before their activations, or
    both after: a linear map cannot match a ReLU's zeros.
    Cost: one matrix for each layer, trained with the network and gone afterwards; the outputs of the layers in memory.
    Interactions: beside a distance of the logits, with a ``Distill`` of its own.

    Example:
        >>> method = FitNets()
        >>> method.build(hidden=(2,), teacher_hidden=(3,))
        >>> method.projections
        ModuleList(
          (0): Linear(in_features=2, out_features=3, bias=True)
        )

    Paper: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, equation 3, https://arxiv.org/abs/1412.6550. Not
    checked at the source: the number of the equation.

    Differs from the paper: the hints are trained together with the network, and not in a stage before it; the squares
    are averaged instead of summed and halved; sizes are met by pooling instead of a convolution.
    """

    unkept_laws: ClassVar = {
        "it_is_least_where_the_student_equals_the_teacher": "the student's layers are compared after a trained map"
    }

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList()

    def build(self, *, hidden: Sequence[int], teacher_hidden: Sequence[int]) -> None:
        """New linear maps from the channels of each of the student's layers to those of the teacher's."""
        self.projections = nn.ModuleList(nn.Linear(own, other) for own, other in zip(hidden, teacher_hidden))

    def forward(self, hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor]) -> Tensor:
        """Maps (N, channels, ...) of the student and of the teacher -> (N,) distances."""
        check_pairs(hidden, teacher_hidden)
        distances = []
        for projection, *maps in zip(self.projections, hidden, teacher_hidden):
            own, other = of_one_size(*maps)
            assert isinstance(projection, nn.Linear)
            mapped = projection(own.movedim(1, -1).to(projection.weight.dtype)).movedim(-1, 1)
            wide = torch.promote_types(mapped.dtype, torch.float32)
            distances.append(F.mse_loss(mapped.to(wide), other.detach().to(wide), reduction="none").flatten(1).mean(1))
        return torch.stack(distances).sum(0)
