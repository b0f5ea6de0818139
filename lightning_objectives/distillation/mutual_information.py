"""Distillation by a bound of the mutual information between hidden layers (MI-alpha)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives.distillation._layers import check_pairs
from lightning_objectives.kinds import Distillation

_WIDTH, _SIZE = 256, 32
"""The hidden units of the trained networks, and the length of the vectors that the critic compares."""


class MutualInformationDistillation(Distillation):
    r"""Trains a student's hidden layers to say of each sample as much of the teacher's as they can.

    .. math::
        \ell_i = -1 - S_{ii} + \frac{1}{N - 1} \sum_{j \ne i} \left( m_{ij} + e^{S_{ij} - m_{ii}} \right), \qquad
        m_{ij} = \log \left( \frac{\alpha}{N - 1} \sum_{k \ne j} e^{S_{ik}} + (1 - \alpha)\, e^{a_i} \right)

    with :math:`S_{ij} = \langle g(f_j), h(f_i^{\text{teacher}}) \rangle` the score of the student's layer for sample j
    beside the teacher's for sample i, and :math:`a_i = a(f_i^{\text{teacher}})`; :math:`g, h, a` are trained networks
    with one hidden layer. The mean over the batch is minus a bound from below of the mutual information. Maps are
    averaged over their places. Several layers add up.

    Args:
        alpha: :math:`\alpha` in [0, 1]: at 1 it is InfoNCE with N - 1 samples, which is steady, but at most
            log(N - 1); at 0 it is a bound with a trained baseline (TUBA), which has no such limit and is noisy.

    Raises:
        ValueError: an ``alpha`` outside of [0, 1]; in the training, layers that do not belong together.

    When to use: with ``Distill(MutualInformationDistillation(), teacher=..., layers=..., teacher_layers=...)``, beside
    a distance of the logits, for layers of any sizes. Batches need 8 samples or more.
    Cost: three small networks for each layer, trained with the network and gone afterwards; N² scores.
    Interactions: only the samples of one batch are compared; a batch of one sample teaches nothing. Gradient
    accumulation does not join the batches. The logged term is negative where the layers know of each other. The
    default of alpha is a choice of this library.

    Example:
        >>> method = MutualInformationDistillation(alpha=1.0)
        >>> method.build(hidden=(4,), teacher_hidden=(6,))
        >>> _ = [nn.init.zeros_(parameter) for parameter in method.parameters()]
        >>> method([torch.randn(3, 4)], [torch.randn(3, 6)]).detach().abs() < 1e-6  # scores that tell nothing
        tensor([True, True, True])

    Paper: He et al., Distiller: A Systematic Study of Model Distillation Methods in Natural Language Processing,
    SustaiNLP 2021, https://arxiv.org/abs/2109.11105; the bound is that of Poole et al., On Variational Bounds of Mutual
    Information, ICML 2019, https://arxiv.org/abs/1905.06922. Not checked at the source: the form of the networks, what
    the layers are averaged over, which end of alpha the authors' code calls which, and which sample each of the two
    means leaves out. Here each mean is over N - 1 samples: with sample i beside its own, without it beside others.
    """

    coupled = "it tells the samples of the batch apart"
    by_process = "each process tells the samples of its own batch apart"
    unkept_laws: ClassVar = {
        "it_is_least_where_the_student_equals_the_teacher": "the layers are compared by trained networks"
    }

    def __init__(self, *, alpha: float = 0.5) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} must be in [0, 1]; 1 is InfoNCE.")
        self.alpha = alpha
        self.students = nn.ModuleList()
        self.teachers = nn.ModuleList()
        self.baselines = nn.ModuleList()

    def build(self, *, hidden: Sequence[int], teacher_hidden: Sequence[int]) -> None:
        """New networks on the channels of each layer: two for the critic and one for the baseline."""
        self.students = nn.ModuleList(_network(own, _SIZE) for own in hidden)
        self.teachers = nn.ModuleList(_network(other, _SIZE) for other in teacher_hidden)
        self.baselines = nn.ModuleList(_network(other, 1) for other in teacher_hidden)

    def forward(self, hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor]) -> Tensor:
        """Maps (N, channels, ...) of the student and of the teacher -> (N,) terms."""
        check_pairs(hidden, teacher_hidden)
        terms = []
        parts = zip(self.students, self.teachers, self.baselines)
        for (student, teacher, baseline), own, other in zip(parts, hidden, teacher_hidden):
            like = next(student.parameters()).dtype
            ours, theirs = _pooled(own).to(like), _pooled(other.detach()).to(like)
            rows, columns = teacher(theirs), student(ours)
            wide = torch.promote_types(rows.dtype, torch.float32)
            with torch.autocast(rows.device.type, enabled=False):
                scores = rows.to(wide) @ columns.to(wide).T
            terms.append(_terms(scores, baseline(theirs).to(wide), self.alpha))
        return torch.stack(terms).sum(0)


def _network(channels: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, size))


def _pooled(maps: Tensor) -> Tensor:
    return maps.flatten(2).mean(2) if maps.dim() > 2 else maps


def _terms(scores: Tensor, baseline: Tensor, alpha: float) -> Tensor:
    """(N,) terms of (N, N) scores, the teacher's samples by rows, and (N, 1) baselines."""
    count = len(scores)
    if count < 2:  # There is no other sample; the sum lets every part have a gradient.
        return 0 * (scores.sum(1) + baseline.sum(1))
    others = _without_each(scores) - math.log(count - 1)
    shares = [(others, alpha), (baseline.expand_as(scores), 1 - alpha)]
    # The logarithm of a share of 0 is minus infinity, and would make the gradient NaN.
    logs = [values + math.log(share) for values, share in shares if share > 0]
    means = torch.logaddexp(*logs) if len(logs) == 2 else logs[0]
    other = ~torch.eye(count, dtype=torch.bool, device=scores.device)
    gaps = torch.where(other, scores - means.diagonal()[:, None], -torch.inf)
    joint = scores.diagonal() - torch.where(other, means, 0.0).sum(1) / (count - 1)
    return gaps.exp().sum(1) / (count - 1) - 1 - joint


def _without_each(scores: Tensor) -> Tensor:
    """The logarithm of the sum of the exponentials of each row, without the column of the element."""
    whole = scores.logsumexp(1, keepdim=True)
    largest = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.argmax(1, keepdim=True), True)
    # A share beside the largest is at most 1/2. The largest is left out by a sum of its own, free of cancellation.
    share = torch.where(largest, -torch.inf, scores - whole).exp()
    rest = scores.masked_fill(largest, -torch.inf).logsumexp(1, keepdim=True)
    return torch.where(largest, rest, whole + (-share).log1p())
