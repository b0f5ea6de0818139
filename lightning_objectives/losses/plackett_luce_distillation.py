"""Plackett-Luce distillation."""

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import wide
from lightning_objectives.shapes import check_classes, check_shapes

_LEAST = -1e30
"""A finite logit for classes that the network rules out."""


def plackett_luce_distillation_loss(
    logits: Tensor, target: Tensor, reference_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    r"""Compute how improbable the teacher's ranking of the classes is, with the target in the first place.

    .. math::
        \ell = \sum_{k=1}^C \alpha_k \left[ \log \sum_{l \ge k} e^{s_{\pi_l}} - s_{\pi_k} \right], \qquad
        \alpha_k = \operatorname{softmax}(t / T)_{\pi_k}

    with :math:`\pi_1` the target and :math:`\pi_2, \pi_3, \dots` the other classes, the teacher's most probable one
    first. If the teacher is sure of the target, this is cross entropy.

    Args:
        logits: (N, C) with C >= 2, the student's :math:`s`, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities, whose most probable class counts.
        reference_logits: (N, C) the teacher's :math:`t`, without gradient.
        temperature: :math:`T > 0`; the higher, the more the late places count.

    Returns:
        (N,) losses >= 0, up to rounding.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a ``temperature`` that is not above 0.

    Example:
        >>> student = torch.tensor([[1.0, 2.0, 3.0]]).log()
        >>> teacher = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> plackett_luce_distillation_loss(student, torch.tensor([2]), teacher)  # 0.2 log(6 / 3) + 0.5 log(3 / 1)
        tensor([0.6879])

    Paper: Bassam et al., PLD: A Choice-Theoretic List-Wise Knowledge Distillation, NeurIPS 2025,
    https://arxiv.org/abs/2506.12542. Not checked at the source: where the temperature enters. Here it makes the weights
    of the places softer, and leaves the student's logits alone.
    """
    _check(temperature)
    check_shapes(logits=logits, target=target, reference_logits=reference_logits)
    check_classes(logits)
    found = (target.argmax(1) if target.is_floating_point() else target.long())[:, None]
    teacher = wide(reference_logits.detach()) / temperature
    ranking = teacher.scatter(1, found, torch.inf).sort(dim=1, descending=True, stable=True).indices
    ranked = wide(logits).gather(1, ranking).clamp_min(_LEAST)
    remaining = ranked.flip(1).logcumsumexp(1).flip(1)
    return (teacher.softmax(1).gather(1, ranking) * (remaining - ranked)).sum(1)


def _check(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be > 0 and finite.")


class PlackettLuceDistillationLoss(Loss):
    r"""Learns the labels and a teacher's ranking of the classes at once, without a weight between the two.

    The losses are those of :func:`plackett_luce_distillation_loss`.

    Args:
        temperature: :math:`T`, of the teacher's weights; the paper states 4 for CIFAR-100.

    Raises:
        ValueError: a ``temperature`` that is not above 0.

    When to use: with ``Refer(network=teacher)`` beside it, in place of cross entropy and a distillation term.
    Cost: the teacher's forward pass, or none with ``Refer(cache=...)`` from the second epoch on; a sort of the classes.
    Interactions: it replaces the model's criterion, so its class weights and label smoothing are lost. Do not use with
    ``Refer(cache_top_k=...)``: classes that share what is left have no ranking. Under Mixup and CutMix the class with
    the greater share counts.

    Example:
        >>> loss = PlackettLuceDistillationLoss()
        >>> loss(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2))  # log(2) / 2
        tensor([0.3466])
    """

    function = staticmethod(plackett_luce_distillation_loss)
    family = "distillation"
    problems = ("classes",)

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        _check(temperature)
        self.temperature = temperature

    def forward(self, logits: Tensor, target: Tensor, reference_logits: Tensor) -> Tensor:
        """(N, C) logits, (N,) classes or (N, C) probabilities, and (N, C) logits of the teacher -> (N,) losses."""
        return plackett_luce_distillation_loss(logits, target, reference_logits, temperature=self.temperature)
