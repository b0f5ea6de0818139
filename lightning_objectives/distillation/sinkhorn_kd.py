"""Sinkhorn knowledge distillation."""

import torch
from torch import Tensor

from lightning_objectives.distillation._classes import wide
from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_classes, check_shapes


def sinkhorn_kd(
    logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0, epsilon: float = 0.1, iterations: int = 20
) -> Tensor:
    r"""Compute the cost of moving a batch of student predictions onto the batch of teacher predictions.

    .. math::
        \ell_i = \sum_j P_{ij} W_{ij}, \qquad W_{ij} = \|q_i - p_j\|_1

    with :math:`p = \operatorname{softmax}(t / T)`, :math:`q = \operatorname{softmax}(s / T)`, and P the transport plan
    that comes from :math:`e^{-W / \epsilon}` if first its rows and then its columns are divided by their sums, so many
    times. The gradient flows through P too.

    Args:
        logits: (N, C) with C >= 2, the student's :math:`s`, in any float type; computed in float32 or better.
        teacher_logits: (N, C) the teacher's :math:`t`; no gradient flows to it.
        temperature: :math:`T > 0`.
        epsilon: :math:`\epsilon > 0`; near 0 each student prediction moves to one teacher prediction, and a great value
            spreads it over all of them.
        iterations: how often rows and columns are normalized, >= 1.

    Returns:
        (N,) costs >= 0. They are no distances: a student that equals the teacher has a cost above 0, and because the
        plan spreads it is not always the least.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> student, teacher = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
        >>> sinkhorn_kd(student, teacher, temperature=1.0)  # one sample: |3/4 - 1/2| + |1/4 - 1/2|
        tensor([0.5000])

    Paper: Cui et al., Sinkhorn Distance Minimization for Knowledge Distillation, LREC-COLING 2024,
    https://arxiv.org/abs/2402.17110.

    Differs from the paper: its code sums over the batch, so that the mean of these costs is N times smaller. It divides
    numbers that become 0 for a small :math:`\epsilon`; this works on their logarithms. For a regression it takes the
    squared error, which is not part of this method.
    """
    _check(temperature, epsilon, iterations)
    check_shapes(logits=logits, teacher_logits=teacher_logits)
    check_classes(logits)
    q, p = (wide(z, temperature).softmax(1) for z in (logits, teacher_logits.detach()))
    cost = torch.cdist(q, p, p=1.0)
    log_plan = -cost / epsilon
    for _ in range(iterations):
        log_plan = log_plan.log_softmax(1).log_softmax(0)
    return (log_plan.exp() * cost).sum(1)


def _check(temperature: float, epsilon: float, iterations: int) -> None:
    for name, value in (("temperature", temperature), ("epsilon", epsilon)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value} must be > 0 and finite.")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be >= 1, because the plan is normalized at least once.")


class SinkhornKD(Distillation):
    r"""Pulls a batch of predictions towards those of the teacher also where the two have hardly a class in common.

    The costs are those of :func:`sinkhorn_kd`.

    Args:
        temperature: :math:`T`; 2 in the authors' code.
        epsilon: how far the plan spreads; 0.1 in the authors' code.
        iterations: how often rows and columns are normalized; 20 in the authors' code.

    Raises:
        ValueError: a setting outside its range.

    When to use: beside a divergence such as :class:`VanillaKD`, if teacher and student are so far apart that single
    classes dominate the divergence. The authors fine-tune language models with it. Their code multiplies the sum over
    the batch by 0.001, which for a batch of 16 is 0.016 of this mean. Not checked at the source: the weights of the
    other two losses beside it.
    Cost: the teacher's forward pass; N · N · C for the costs, and 2 · N · N numbers kept for each iteration.
    Interactions: the cost does not say which student prediction belongs to which teacher prediction: two samples that
    exchange their predictions have the same mean. So it does not replace a loss on each sample. If the teacher's
    predictions differ by far less than ``epsilon``, the least cost is at their middle and not at the teacher. Only the
    samples of one batch are compared, and gradient accumulation does not join the batches.

    Example:
        >>> far = torch.tensor([[9.0, -9.0], [9.0, -9.0]])
        >>> SinkhornKD()(far, -far)
        tensor([1.9995, 1.9995])
    """

    function = staticmethod(sinkhorn_kd)
    problems = ("classes",)
    coupled = "it moves the predictions of the batch onto each other"
    by_process = "each process compares the samples of its own batch"

    def __init__(self, *, temperature: float = 2.0, epsilon: float = 0.1, iterations: int = 20) -> None:
        super().__init__()
        _check(temperature, epsilon, iterations)
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations

    def forward(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """(N, C) and (N, C) logits -> (N,) costs."""
        return sinkhorn_kd(
            logits, teacher_logits, temperature=self.temperature, epsilon=self.epsilon, iterations=self.iterations
        )
