"""Knowledge distillation in its original form."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_classes, check_shapes


def vanilla_kd(logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    r"""Compute the divergence between the softened class distributions of teacher and student.

    .. math::
        \ell = T^2\, \mathrm{KL}\left(\operatorname{softmax}(t / T) \,\|\, \operatorname{softmax}(s / T)\right)

    The factor :math:`T^2` keeps the size of the gradient as the temperature grows.

    Args:
        logits: (N, C) with C >= 2, the student's :math:`s`, in any float type; computed in float32 or better.
        teacher_logits: (N, C) the teacher's :math:`t`; no gradient flows to it.
        temperature: :math:`T > 0`.

    Returns:
        (N,) distances >= 0, up to rounding.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a temperature that is not positive.

    Example:
        >>> teacher = torch.tensor([[3.0, 1.0]]).log()  # 3/4 and 1/4: 3/4 log 3/2 + 1/4 log 1/2
        >>> vanilla_kd(torch.zeros(1, 2), teacher, temperature=1.0)
        tensor([0.1308])

    Paper: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531.
    """
    check_shapes(logits=logits, teacher_logits=teacher_logits)
    check_classes(logits)
    _check(temperature)
    exact = torch.promote_types(logits.dtype, torch.float32)
    student = (logits.to(exact) / temperature).log_softmax(-1)
    teacher = (teacher_logits.detach().to(exact) / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def _check(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be > 0 and finite.")


class VanillaKD(Distillation):
    """Trains a student to match the softened class probabilities of its teacher.

    The distances are those of :func:`vanilla_kd`.

    Args:
        temperature: :math:`T`; 4 is what most comparisons on small images use.

    Raises:
        ValueError: a temperature that is not positive.

    When to use: as the baseline of every distillation.
    Cost: the teacher's forward pass.
    Interactions: the model's own loss keeps the weight 1; balance the two with ``weight`` of the callback.

    Example:
        >>> VanillaKD()(torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, -2.0]]))
        tensor([0.])
    """

    function = staticmethod(vanilla_kd)
    problems = ("classes",)

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        _check(temperature)
        self.temperature = temperature

    def forward(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """(N, C) and (N, C) logits -> (N,) distances."""
        return vanilla_kd(logits, teacher_logits, temperature=self.temperature)
