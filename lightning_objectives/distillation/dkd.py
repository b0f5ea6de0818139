"""Decoupled knowledge distillation."""

import torch
from torch import Tensor

from lightning_objectives.distillation._classes import beside, class_of, divergence, wide
from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_classes, check_shapes


def dkd(
    logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    r"""Compute two divergences: of how sure the networks are of the target, and of what they say of the other classes.

    .. math::
        \ell = T^2 \left[ \alpha\, \mathrm{KL}\left((p_y, 1 - p_y) \,\|\, (q_y, 1 - q_y)\right)
        + \beta\, \mathrm{KL}(\hat p \,\|\, \hat q) \right]

    with :math:`p = \operatorname{softmax}(t / T)`, :math:`q = \operatorname{softmax}(s / T)`, y the target, and
    :math:`\hat p`, :math:`\hat q` the same softmax over the classes other than y. :func:`vanilla_kd` is the sum with
    :math:`\alpha = 1` and :math:`\beta = 1 - p_y`, so it hardly uses the other classes where the teacher is sure.

    Args:
        logits: (N, C) with C >= 2, the student's :math:`s`, in any float type; computed in float32 or better.
        teacher_logits: (N, C) the teacher's :math:`t`; no gradient flows to it.
        target: (N,) int classes or (N, C) float class probabilities, whose most probable class counts.
        alpha: :math:`\alpha \ge 0`.
        beta: :math:`\beta \ge 0`; it is no share, and is usually above 1.
        temperature: :math:`T > 0`.

    Returns:
        (N,) distances >= 0, up to rounding; 0 for a row without a class, such as a target of -100.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> teacher = torch.tensor([[2.0, 1.0, 1.0]]).log()  # p_y = 1/2 of class 0, and equal others
        >>> student = torch.tensor([[2.0, 1.5, 0.5]]).log()  # q_y = 1/2 too: 8 (1/2 log 2/3 + 1/2 log 2)
        >>> dkd(student, teacher, torch.tensor([0]), temperature=1.0)
        tensor([1.1507])

    Paper: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, https://arxiv.org/abs/2203.08679.

    Differs from the paper: the released code subtracts 1000 from the target's logit, and takes the logarithm of a
    rounded probability, which is infinite where a network is very sure. This form is finite everywhere. The paper has
    no targets of probabilities.
    """
    _check(alpha, beta, temperature)
    check_shapes(logits=logits, teacher_logits=teacher_logits, target=target)
    check_classes(logits)
    found, known = class_of(target, logits.shape[1])
    student, teacher = wide(logits, temperature), wide(teacher_logits.detach(), temperature)
    student_others, teacher_others = beside(student, found), beside(teacher, found)
    # The logits of two classes, the target and all others, whose softmax is (p_y, 1 - p_y).
    of_target = divergence(
        torch.cat([teacher.gather(1, found), teacher_others.logsumexp(1, keepdim=True)], 1),
        torch.cat([student.gather(1, found), student_others.logsumexp(1, keepdim=True)], 1),
    )
    distances = temperature**2 * (alpha * of_target + beta * divergence(teacher_others, student_others))
    return torch.where(known, distances, 0.0)


def _check(alpha: float, beta: float, temperature: float) -> None:
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} must be >= 0 and finite.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be > 0 and finite.")


class DKD(Distillation):
    r"""Gives what the teacher says of the wrong classes a weight of its own, also where the teacher is sure.

    The distances are those of :func:`dkd`.

    Args:
        alpha: :math:`\alpha \ge 0`, the weight of the target's part; the authors use 1.
        beta: :math:`\beta \ge 0`, the weight of the other classes. The authors use 2, 6 or 8 on CIFAR-100, 0.5 for a
            ResNet-18 under a ResNet-34 on ImageNet, and 2 for a MobileNet under a ResNet-50.
        temperature: :math:`T`; 4 on CIFAR-100, 1 on ImageNet.

    Raises:
        ValueError: a setting outside its range.

    When to use: instead of :class:`VanillaKD` if the teacher is nearly always right and sure.
    Cost: the teacher's forward pass.
    Interactions: it needs the labels. Let the term grow over the first 20 epochs (1 on ImageNet), as the authors do:
    ``Distill(DKD(), warmup_steps=...)``. With two classes it is :class:`VanillaKD` times ``alpha``. Under Mixup and
    CutMix the class with the greater share counts. Rows whose target is ignored have a distance of 0.

    Example:
        >>> DKD()(torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, -2.0]]), torch.tensor([0]))
        tensor([0.])
    """

    function = staticmethod(dkd)
    problems = ("classes",)

    def __init__(self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        _check(alpha, beta, temperature)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature

    def forward(self, logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) and (N, C) logits and (N,) classes or (N, C) probabilities -> (N,) distances."""
        return dkd(logits, teacher_logits, target, alpha=self.alpha, beta=self.beta, temperature=self.temperature)
