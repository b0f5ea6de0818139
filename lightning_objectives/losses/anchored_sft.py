"""Anchored supervised fine-tuning."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import log_probabilities, wide
from lightning_objectives.losses.dynamic_fine_tuning import dynamic_fine_tuning_loss
from lightning_objectives.shapes import check_shapes

Direction = Literal["forward", "reverse"]


def anchored_sft_loss(
    logits: Tensor,
    target: Tensor,
    reference_logits: Tensor,
    *,
    strength: float = 0.1,
    direction: Direction = "forward",
) -> Tensor:
    r"""Compute the loss of dynamic fine-tuning, and add the distance from a reference.

    .. math::
        \ell = -\operatorname{sg}(p_y) \log p_y + \lambda \, \mathrm{KL}(p^{\text{ref}} \,\|\, p)

    with sg a constant for the gradient.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities; the latter give the expectation of the first part.
        reference_logits: (N, C) those of the reference, without gradient.
        strength: :math:`\lambda \ge 0`; 0 is dynamic fine-tuning.
        direction: ``forward`` is the divergence above, ``reverse`` is :math:`\mathrm{KL}(p \,\|\, p^{\text{ref}})`.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a setting outside its range.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.25, 0.75]]).log()
        >>> anchored_sft_loss(logits, torch.tensor([0]), torch.zeros(1, 2), strength=1.0)  # log(4) / 4 + log(4 / 3) / 2
        tensor([0.4904])

    Paper: Zhu et al., Anchored Supervised Fine-Tuning, 2025, https://arxiv.org/abs/2509.23753. The formula and the
    default strength are those of the authors' code. Not checked at the source: the paper's text, which is said to have
    the reverse direction.
    """
    _check(strength, direction)
    check_shapes(logits=logits, target=target, reference_logits=reference_logits)
    own, reference = log_probabilities(logits, target), wide(reference_logits.detach()).log_softmax(1)
    first, second = (reference, own) if direction == "forward" else (own, reference)
    # inf - inf and 0 * inf are NaN, so classes that both rule out need a finite logarithm.
    least = torch.finfo(own.dtype).min
    divergence = (first.exp() * (first.clamp_min(least) - second.clamp_min(least))).sum(1)
    return dynamic_fine_tuning_loss(logits, target) + strength * divergence


def _check(strength: float, direction: str) -> None:
    if not strength >= 0:
        raise ValueError(f"strength={strength} must be >= 0; 0 is dynamic fine-tuning.")
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction={direction!r} must be 'forward' or 'reverse'.")


class AnchoredSFTLoss(Loss):
    r"""Fine-tunes on what the model already believes, and holds the model near where it started.

    The losses are those of :func:`anchored_sft_loss`.

    Args:
        strength: :math:`\lambda`, how strongly the reference holds.
        direction: ``forward`` or ``reverse``, see the function.

    Raises:
        ValueError: a setting outside its range.

    When to use: with :class:`Refer` beside it, for supervised fine-tuning where :class:`DynamicFineTuningLoss` drifts
    away. The default strength is that of the authors' code.
    Cost: the reference's forward pass and its weights; ``Refer(network=..., cache=...)`` saves the pass from the second
    epoch on.
    Interactions: with dropout the network differs from the reference from the start, because the reference has none.
    Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> AnchoredSFTLoss()(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2))  # at the reference: log(2) / 2
        tensor([0.3466])
    """

    function = staticmethod(anchored_sft_loss)
    family = "fine-tuning"
    problems = ("classes",)
    unkept_laws: ClassVar = {
        "the_gradient_is_that_of_finite_differences": "the target's probability is a constant for the gradient"
    }

    def __init__(self, *, strength: float = 0.1, direction: Direction = "forward") -> None:
        super().__init__()
        _check(strength, direction)
        self.strength = strength
        self.direction: Direction = direction

    def forward(self, logits: Tensor, target: Tensor, reference_logits: Tensor) -> Tensor:
        """(N, C) logits, (N,) classes or (N, C) probabilities, and (N, C) logits of the reference -> (N,) losses."""
        return anchored_sft_loss(logits, target, reference_logits, strength=self.strength, direction=self.direction)
