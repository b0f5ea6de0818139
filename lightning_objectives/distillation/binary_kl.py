"""Distillation by one binary divergence per class."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_shapes


def binary_kl(logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0, normalize: bool = False) -> Tensor:
    r"""Compute the divergence between the teacher's and the student's Bernoulli distributions, summed over the classes.

    .. math::
        \ell = T^2 \sum_k \mathrm{KL}\left(\sigma(t_k / T) \,\|\, \sigma(s_k / T)\right)

    The normalized form centres the student's logits on the teacher's, so that the curvature is the same whatever the
    teacher says:

    .. math::
        \ell = T^2 \sum_k \mathrm{KL}\left(\tfrac12 \,\|\, \sigma(u_k)\right)
             = T^2 \sum_k \left[\operatorname{softplus}(u_k) - \tfrac{u_k}{2} - \log 2\right]
             = T^2 \sum_k \log\cosh\frac{u_k}{2}, \qquad u = \frac{s - t}{T}

    It is about :math:`(s - t)^2 / 8` near the teacher and :math:`T |s - t| / 2` far away.

    Args:
        logits: (N, C) the student's :math:`s`, in any float type; computed in float32 or better.
        teacher_logits: (N, C) the teacher's :math:`t`; no gradient flows to it.
        temperature: :math:`T > 0`.
        normalize: use the second form.

    Returns:
        (N,) distances >= 0, up to rounding.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.

    Example:
        >>> binary_kl(torch.tensor([[4.0]]), torch.tensor([[0.0]]), normalize=True)  # 4 log cosh 1
        tensor([1.7351])

    Paper: Yang et al., Dual-Head Knowledge Distillation, KDD 2025, https://arxiv.org/abs/2411.08937; BinaryKL and
    BinaryKL-Norm.

    Differs from the paper: the released code clamps probabilities and gives infinity from :math:`|s - t| = 36` on in
    float32 (17 in half precision). These forms are finite, with a gradient, everywhere.
    """
    check_shapes(logits=logits, teacher_logits=teacher_logits)
    _check(temperature)
    exact = torch.promote_types(logits.dtype, torch.float32)
    student, teacher = logits.to(exact) / temperature, teacher_logits.detach().to(exact) / temperature
    if normalize:
        u = student - teacher
        return temperature**2 * (F.softplus(u) - u / 2 - math.log(2)).sum(-1)
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    no = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (yes + no).sum(-1)


def _check(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be > 0 and finite.")


class BinaryKL(Distillation):
    """Trains a student to match its teacher's probability of each class by itself, on the network's one head.

    The distances are those of :func:`binary_kl`.

    Args:
        temperature: :math:`T`; the paper's is 2.
        normalize: centre the student's logits on the teacher's.

    Raises:
        ValueError: a temperature that is not positive.

    When to use: for comparison. **Added to a cross entropy on the same head, it collapses below either of the two
    alone**, which is the paper's finding and the reason for :class:`DualHead`. On its own, without a label loss, it
    trains.
    Cost: the teacher's forward pass.
    Interactions: the sum over classes grows with their number.

    Example:
        >>> BinaryKL()(torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, -2.0]]))
        tensor([0.])
    """

    exemplar = True
    function = staticmethod(binary_kl)
    problems = ("classes", "binary", "labels")

    def __init__(self, *, temperature: float = 2.0, normalize: bool = False) -> None:
        super().__init__()
        _check(temperature)
        self.temperature = temperature
        self.normalize = normalize

    def forward(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """(N, C) and (N, C) logits -> (N,) distances."""
        return binary_kl(logits, teacher_logits, temperature=self.temperature, normalize=self.normalize)
