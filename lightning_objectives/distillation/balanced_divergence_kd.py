"""Distillation by a balance of the forward and the reverse divergence (BD-KD)."""

import torch
from torch import Tensor

from lightning_objectives.distillation._classes import divergence, wide
from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_classes, check_shapes


def balanced_divergence_kd(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    surer: tuple[float, float] = (2.0, 1.0),
    less_sure: tuple[float, float] = (1.0, 2.0),
    temperature: float = 4.0,
) -> Tensor:
    r"""Compute both divergences between teacher and student, weighted by which of the two is the surer of the sample.

    .. math::
        \ell = T^2 \left[ \nu\, \mathrm{KL}(p \,\|\, q) + \mu\, \mathrm{KL}(q \,\|\, p) \right], \qquad
        (\nu, \mu) = \begin{cases} \texttt{surer} & H(q) < H(p) \\ \texttt{less\_sure} & \text{else} \end{cases}

    with :math:`p = \operatorname{softmax}(t / T)` the teacher, :math:`q = \operatorname{softmax}(s / T)` the student,
    and H the entropy. The weights have no gradient.

    Args:
        logits: (N, C) with C >= 2, the student's :math:`s`, in any float type; computed in float32 or better.
        teacher_logits: (N, C) the teacher's :math:`t`; no gradient flows to it.
        surer: :math:`(\nu, \mu)`, >= 0, for samples on which the student is surer than the teacher.
        less_sure: the same for all other samples.
        temperature: :math:`T > 0`.

    Returns:
        (N,) distances >= 0, up to rounding.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)  # 3/4, 1/4 and 1/2, 1/2
        >>> balanced_divergence_kd(student, teacher, temperature=1.0)  # 0.1308 + 2 · 0.1438
        tensor([0.4185])

    Paper: Amara et al., BD-KD: Balancing the Divergences for Online Knowledge Distillation, 2022,
    https://arxiv.org/abs/2212.12965. Not checked at the source: the weights, which of the two divergences gets the
    greater one, the temperature, and whether the entropies are those of the softened distributions. The defaults prefer
    the divergence with the stronger gradient: the forward one where the student is too sure, else the reverse one.

    Differs from the paper: the teacher is frozen; the paper trains it beside the student.
    """
    _check(surer, less_sure, temperature)
    check_shapes(logits=logits, teacher_logits=teacher_logits)
    check_classes(logits)
    student, teacher = wide(logits, temperature), wide(teacher_logits.detach(), temperature)
    student_is_surer = _entropy(student.detach()) < _entropy(teacher)
    forward, reverse = (torch.where(student_is_surer, *weights) for weights in zip(surer, less_sure))
    weighted = forward * divergence(teacher, student) + reverse * divergence(student, teacher)
    return temperature**2 * weighted


def _entropy(logits: Tensor) -> Tensor:
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def _check(surer: tuple[float, float], less_sure: tuple[float, float], temperature: float) -> None:
    for name, weights in (("surer", surer), ("less_sure", less_sure)):
        if len(weights) != 2 or not all(0 <= weight < float("inf") for weight in weights):
            raise ValueError(
                f"{name}={weights} must be two numbers >= 0 and finite: the weights of the forward and of the reverse "
                "divergence."
            )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be > 0 and finite.")


class BalancedDivergenceKD(Distillation):
    r"""Corrects a student's confidence beside its ranking of the classes, so that it is better calibrated.

    The distances are those of :func:`balanced_divergence_kd`. The forward divergence, from the teacher, pulls an overly
    sure student back; the reverse one takes from a student that spreads the classes that the teacher rules out.

    Args:
        surer: the weights of the forward and of the reverse divergence, :math:`(\nu, \mu)`, where the student is surer
            than the teacher.
        less_sure: those where it is not.
        temperature: :math:`T`.

    Raises:
        ValueError: a setting outside its range.

    When to use: instead of :class:`VanillaKD` if the calibration of the student matters. Compare it with a
    :class:`VanillaKD` and a fitted temperature.
    Cost: the teacher's forward pass.
    Interactions: the weights add up to 3 with the defaults, so give a smaller ``weight`` than for :class:`VanillaKD`,
    which is ``surer=(1, 0), less_sure=(1, 0)``. A teacher that is too sure makes the student too sure.

    Example:
        >>> BalancedDivergenceKD()(torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, -2.0]]))
        tensor([0.])
    """

    function = staticmethod(balanced_divergence_kd)
    problems = ("classes",)

    def __init__(
        self,
        *,
        surer: tuple[float, float] = (2.0, 1.0),
        less_sure: tuple[float, float] = (1.0, 2.0),
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        _check(surer, less_sure, temperature)
        self.surer = surer
        self.less_sure = less_sure
        self.temperature = temperature

    def forward(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """(N, C) and (N, C) logits -> (N,) distances."""
        return balanced_divergence_kd(
            logits, teacher_logits, surer=self.surer, less_sure=self.less_sure, temperature=self.temperature
        )
