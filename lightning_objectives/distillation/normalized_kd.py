"""Normalized knowledge distillation."""

from typing import ClassVar

import torch
from torch import Tensor

from lightning_objectives.distillation._classes import beside, class_of, wide
from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_classes, check_shapes


def normalized_kd(
    logits: Tensor, teacher_logits: Tensor, target: Tensor, *, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    r"""Compute a soft cross entropy of the target's class, and another of the other classes among themselves.

    .. math::
        \ell = -p_y \log q_y - \gamma \tau^2 \sum_{k \ne y} \hat p_k \log \hat q_k

    with :math:`p = \operatorname{softmax}(t)`, :math:`q = \operatorname{softmax}(s)`, y the target, and
    :math:`\hat p`, :math:`\hat q` the softmax of :math:`t / \tau` and :math:`s / \tau` over the classes other than y.

    Args:
        logits: (N, C) with C >= 2, the student's :math:`s`, in any float type; computed in float32 or better.
        teacher_logits: (N, C) the teacher's :math:`t`; no gradient flows to it.
        target: (N,) int classes or (N, C) float class probabilities, whose most probable class counts.
        gamma: :math:`\gamma \ge 0`, the weight of the other classes.
        temperature: :math:`\tau > 0`, of the other classes alone.

    Returns:
        (N,) terms >= 0; 0 for a row without a class, such as a target of -100. They are no distances: an equal student
        has the teacher's entropies.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> teacher = torch.tensor([[2.0, 1.0, 1.0]]).log()  # p_y = 1/2, and two equal others
        >>> student = torch.tensor([[1.0, 1.0, 2.0]]).log()  # 1/2 log 4, and 1.5 (1/2 log 3 + 1/2 log 3/2)
        >>> normalized_kd(student, teacher, torch.tensor([0]))
        tensor([1.8212])

    Paper: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels, ICCV 2023, https://arxiv.org/abs/2303.13005.

    Differs from the paper: the model's own loss, a cross entropy in the paper, is not part of the term.
    """
    _check(gamma, temperature)
    check_shapes(logits=logits, teacher_logits=teacher_logits, target=target)
    check_classes(logits)
    found, known = class_of(target, logits.shape[1])
    student, teacher = wide(logits, 1.0), wide(teacher_logits.detach(), 1.0)
    log_q, p = student.log_softmax(1), teacher.softmax(1)
    of_target = -(p.gather(1, found) * log_q.gather(1, found)).squeeze(1)
    log_q, p = (beside(student, found) / temperature).log_softmax(1), (beside(teacher, found) / temperature).softmax(1)
    of_others = -(p * log_q).sum(1)
    return torch.where(known, of_target + gamma * temperature**2 * of_others, 0.0)


def _check(gamma: float, temperature: float) -> None:
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma={gamma} must be >= 0 and finite.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be > 0 and finite.")


class NormalizedKD(Distillation):
    r"""Distils the target's class and the other classes apart, so that the teacher can only add to the label loss.

    The terms are those of :func:`normalized_kd`. That of the target's class is a second cross entropy, which weighs
    each sample by how sure the teacher is of its label.

    Args:
        gamma: :math:`\gamma \ge 0`, the weight of the other classes; the authors use 1.5 on ImageNet and 3.5 on
            CIFAR-100.
        temperature: :math:`\tau` of the other classes; the authors use 1 on ImageNet and 3 on CIFAR-100.

    Raises:
        ValueError: a setting outside its range.

    When to use: instead of :class:`VanillaKD` beside a cross entropy on labels that can be trusted.
    Cost: the teacher's forward pass.
    Interactions: it needs the labels. Because the target's part is a cross entropy, the student becomes surer of the
    label than the teacher is. With two classes that part is all there is. Under Mixup and CutMix the class with the
    greater share counts, as in the authors' code. Rows whose target is ignored have a term of 0.

    Example:
        >>> same = torch.tensor([[0.0, 0.0]])
        >>> NormalizedKD()(same, same, torch.tensor([0]))  # 1/2 log 2
        tensor([0.3466])
    """

    function = staticmethod(normalized_kd)
    problems = ("classes",)
    unkept_laws: ClassVar = {
        "it_is_least_where_the_student_equals_the_teacher": "a student that is surer of the target has a lower term"
    }

    def __init__(self, *, gamma: float = 1.5, temperature: float = 1.0) -> None:
        super().__init__()
        _check(gamma, temperature)
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) and (N, C) logits and (N,) classes or (N, C) probabilities -> (N,) terms."""
        return normalized_kd(logits, teacher_logits, target, gamma=self.gamma, temperature=self.temperature)
