"""Distillation from a stronger teacher, by correlations."""

import torch
from torch import Tensor

from lightning_objectives.distillation._classes import wide
from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_classes, check_shapes

_LEAST = 1e-4
"""The length from which on a centred row or column counts as varying. The authors' code adds its square to the product
of two lengths."""


def dist_loss(
    logits: Tensor, teacher_logits: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    r"""Compute how far the probabilities of the two networks are from correlating, in each row and in each column.

    .. math::
        \ell_n = \tau^2 \left[ \beta \left(1 - \rho(q_n, p_n)\right)
        + \gamma \left(1 - \frac{1}{C} \sum_k \rho(q_{\cdot k}, p_{\cdot k})\right) \right]

    with :math:`p = \operatorname{softmax}(t / \tau)`, :math:`q = \operatorname{softmax}(s / \tau)` and :math:`\rho`
    Pearson's correlation: over the classes of a sample, and over the samples of a class. The second part is the same
    for all rows. A correlation does not see a scale and a shift, so the student need not be as sure as the teacher.

    Args:
        logits: (N, C) with C >= 2, the student's :math:`s`, in any float type; computed in float32 or better.
        teacher_logits: (N, C) the teacher's :math:`t`; no gradient flows to it.
        beta: :math:`\beta \ge 0`, the weight of the rows.
        gamma: :math:`\gamma \ge 0`, the weight of the columns.
        temperature: :math:`\tau > 0`.

    Returns:
        (N,) distances >= 0, up to rounding.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> student = torch.tensor([[4.0, 3.0, 3.0]]).log()  # around 1/3: 2, -1, -1
        >>> teacher = torch.tensor([[6.0, 3.0, 1.0]]).log()  # around 1/3: 8, -1, -7, so 24 / sqrt(6 · 114)
        >>> dist_loss(student, teacher, gamma=0.0)
        tensor([0.0823])

    Paper: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022,
    https://arxiv.org/abs/2205.10536.

    Differs from the paper: the factor :math:`\tau^2` is that of the authors' code, and not in the paper's appendix. A
    row or column of the teacher that does not vary has no correlation; the authors' code counts it as a distance of 1,
    and we as 0. Lengths below 1e-4 count as 1e-4, so that the gradient stays small where the student does not vary.
    """
    _check(beta, gamma, temperature)
    check_shapes(logits=logits, teacher_logits=teacher_logits)
    check_classes(logits)
    student, teacher = (wide(z, temperature).softmax(1) for z in (logits, teacher_logits.detach()))
    of_rows, of_columns = _apart(student, teacher), _apart(student.T, teacher.T)
    return temperature**2 * (beta * of_rows + gamma * of_columns.mean())


def _apart(student: Tensor, teacher: Tensor) -> Tensor:
    """(R,) one minus the correlations of the rows of two (R, K) tables; 0 where the teacher does not vary."""
    ours, theirs = _direction(student), _direction(teacher)
    varies: Tensor = torch.linalg.vector_norm(theirs, dim=1)
    return varies - (ours * theirs).sum(1)


def _direction(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return centred / lengths.clamp_min(_LEAST)


def _check(beta: float, gamma: float, temperature: float) -> None:
    for name, value in (("beta", beta), ("gamma", gamma)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} must be >= 0 and finite.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be > 0 and finite.")


class DIST(Distillation):
    r"""Trains a student to order classes and samples as a teacher does that is much stronger than the student.

    The distances are those of :func:`dist_loss`.

    Args:
        beta: :math:`\beta \ge 0`, the weight of the correlations over the classes of a sample; the authors use 1.
        gamma: :math:`\gamma \ge 0`, the weight of those over the samples of a class; the authors use 1.
        temperature: :math:`\tau`; the authors use 1, and 4 on CIFAR-100.

    Raises:
        ValueError: a setting outside its range.

    When to use: if the teacher is so much stronger that :class:`VanillaKD` does not help. The authors' runs give the
    term the weight 2 beside a cross entropy of weight 1: ``Distill(DIST(), weight=2.0, ...)``.
    Cost: the teacher's forward pass.
    Interactions: the columns are those of one batch. With one sample they teach nothing, and with two hardly anything,
    because the correlation of two points is 1 or -1. The same holds for the rows of two classes. Gradient accumulation
    does not join the batches.

    Example:
        >>> DIST()(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[1.0, -2.0], [0.0, 3.0]])).abs() < 1e-6
        tensor([True, True])
    """

    function = staticmethod(dist_loss)
    problems = ("classes",)
    coupled = "it correlates the samples of the batch"
    by_process = "each process correlates the samples of its own batch"

    def __init__(self, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        _check(beta, gamma, temperature)
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """(N, C) and (N, C) logits -> (N,) distances."""
        return dist_loss(logits, teacher_logits, beta=self.beta, gamma=self.gamma, temperature=self.temperature)
