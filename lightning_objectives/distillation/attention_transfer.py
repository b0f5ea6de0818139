"""Attention transfer: the student looks where its teacher looks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.distillation._layers import check_pairs, of_one_size
from lightning_objectives.kinds import Distillation


def attention_distance(hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor], *, power: float = 2.0) -> Tensor:
    r"""Compute how far the places at which the student's layers respond are from those of the teacher's.

    .. math::
        \sum_l \frac{1}{HW} \| a(f_l) - a(f_l^{\text{teacher}}) \|^2, \qquad
        a(f) = \frac{v}{\|v\|}, \quad v = \operatorname{vec} \frac1C \sum_c |f_c|^p

    Of maps of different sizes the larger is pooled to the smaller. The numbers of channels may differ.

    Args:
        hidden: maps (N, channels, ...) of the student, one for each layer.
        teacher_hidden: those of the teacher.
        power: :math:`p > 0`; the larger, the more the strongest responses count.

    Returns:
        (N,) distances. A map of zeros has no attention, which counts as one of zeros.

    Raises:
        ValueError: layers that do not belong together or have no places, or a ``power`` that is not above 0.

    Example:
        >>> student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
        >>> attention_distance([student], [teacher])  # two orthogonal unit vectors: 2 of 2 places
        tensor([1.])

    Paper: Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, equation 2,
    https://arxiv.org/abs/1612.03928. Not checked at the source: the number of the equation.

    Differs from the paper: the squared distance, averaged over the places, as in the authors' code. The paper has the
    distance itself.
    """
    check_pairs(hidden, teacher_hidden)
    _check(power)
    distances = []
    for number, maps in enumerate(zip(hidden, teacher_hidden)):
        if maps[0].dim() < 3:
            raise ValueError(
                f"The layers {number} have the shape {tuple(maps[0].shape)}, without places that could be attended to. "
                "Name layers with maps: (N, channels, ...)."
            )
        own, other = of_one_size(*maps)
        distances.append((_attention(own, power) - _attention(other.detach(), power)).square().mean(1))
    return torch.stack(distances).sum(0)


def _attention(maps: Tensor, power: float) -> Tensor:
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    # The scale does not matter, and without it large values would overflow.
    maps = maps / maps.detach().abs().flatten(1).amax(1).clamp_min(1e-30).view(-1, *[1] * (maps.dim() - 1))
    return F.normalize(maps.abs().pow(power).mean(1).flatten(1))


def _check(power: float) -> None:
    if not power > 0:
        raise ValueError(f"power={power} must be > 0; the paper uses 2.")


class AttentionTransfer(Distillation):
    r"""Guides a student to respond at the same places of an image as its teacher, with any numbers of channels.

    The distances are those of :func:`attention_distance`.

    Args:
        power: :math:`p`.

    Raises:
        ValueError: a ``power`` that is not above 0.

    When to use: with ``Distill(AttentionTransfer(), teacher=..., layers=..., teacher_layers=..., weight=1000)``, for
    networks on images; the layers are the ends of their stages. 1000 is the authors' code.
    Cost: the outputs of the layers in memory. Nothing is trained.
    Interactions: beside a distance of the logits, with a ``Distill`` of its own.

    Example:
        >>> maps = torch.rand(2, 3, 4, 4)
        >>> AttentionTransfer()([maps], [4 * maps])
        tensor([0., 0.])
    """

    function = staticmethod(attention_distance)

    def __init__(self, *, power: float = 2.0) -> None:
        super().__init__()
        _check(power)
        self.power = power

    def forward(self, hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor]) -> Tensor:
        """Maps (N, channels, ...) of the student and of the teacher -> (N,) distances."""
        return attention_distance(hidden, teacher_hidden, power=self.power)
