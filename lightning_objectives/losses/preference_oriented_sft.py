"""Preference-oriented supervised fine-tuning."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._regions import check_places
from lightning_objectives.losses._targets import wide
from lightning_objectives.shapes import check_classes, check_shapes, forms

_FORMS = {"logits": forms("(N, C, ...) float"), "reference_logits": forms("(N, C, ...) float")}
_MOST = 1e30
"""A finite loss for a target that a network rules out: inf - inf is NaN."""


def preference_oriented_sft_loss(
    logits: Tensor, target: Tensor, reference_logits: Tensor, mask: Tensor | None = None
) -> Tensor:
    r"""Compute how improbable it is that the network is preferred to a reference, by the likelihood of each sequence.

    .. math::
        \ell = -\log \sigma(r - r^{\text{ref}}), \qquad r = \frac{1}{|y|} \sum_{t=1}^{|y|} \log p_{y_t}

    Its gradient is that of the mean cross entropy of the sequence times :math:`\sigma(r^{\text{ref}} - r)`: a sequence
    counts less if the reference finds it improbable, or if the network is already ahead.

    Args:
        logits: (N, C, ...) with C >= 2, N sequences of any shape, such as (N, C, T); (N, C) are sequences of one
            target. Computed in float32 or better.
        target: (N, ...) int classes, or (N, C, ...) float class probabilities, whose cross entropy counts.
        reference_logits: (N, C, ...) those of the reference, without gradient.
        mask: (N, ...) bool, the positions that count; None for all.

    Returns:
        (N,) losses; log 2 at the reference, and 0 for a sequence in which no position counts.

    Raises:
        ValueError: shapes that do not fit, or fewer than two classes.

    Example:
        >>> import torch
        >>> p = torch.tensor([[[0.8, 0.5], [0.2, 0.5]]])  # two classes at two positions
        >>> reference = torch.full_like(p, 0.5)
        >>> preference_oriented_sft_loss(p.log(), torch.tensor([[0, 1]]), reference.log())  # log(1 + sqrt(0.5 / 0.8))
        tensor([0.5825])

    Paper: Fan et al., Preference-Oriented Supervised Fine-Tuning: Favoring Target Model Over Aligned Large Language
    Models, AAAI 2025, https://arxiv.org/abs/2412.12865.

    Differs from the paper: one reference, with the same tokens as the network. The paper takes the mean of
    :math:`r^{\text{ref}}` over several references, each with tokens of its own.
    """
    check_places(logits, target, mask)
    check_shapes(_FORMS, logits=logits, reference_logits=reference_logits)
    check_classes(logits)
    if reference_logits.shape != logits.shape:
        raise ValueError(
            f"reference_logits of the shape {tuple(reference_logits.shape)} do not fit logits of the shape "
            f"{tuple(logits.shape)}: both must have the same positions. Give both networks the same sequences."
        )
    own = _mean_losses(logits, target, mask)
    losses = F.softplus(own - _mean_losses(reference_logits.detach(), target, mask))
    return losses if mask is None else torch.where(mask[:, None].flatten(1).any(1), losses, 0.0)


def _mean_losses(logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """(N,) the mean cross entropy of each sequence over the positions that count."""
    if not target.is_floating_point():
        # An ignored position may hold any number, which is no class.
        target = target.long() if mask is None else torch.where(mask, target.long(), 0)
    losses = F.cross_entropy(wide(logits), target, reduction="none").clamp_max(_MOST)
    losses = losses[:, None].flatten(1)
    if mask is None:
        return losses.mean(1)
    counts = mask[:, None].flatten(1)
    return torch.where(counts, losses, 0.0).sum(1) / counts.sum(1).clamp_min(1)


class PreferenceOrientedSFTLoss(Loss):
    """Fine-tunes less on answers that a well-aligned model finds improbable, which are often the bad ones (PoFT).

    The losses are those of :func:`preference_oriented_sft_loss`.

    When to use: for supervised fine-tuning on instruction data of mixed quality, with a well-aligned model of the same
    tokens as the reference: ``Refer(network=..., weights=...)`` beside it.
    Cost: the reference's forward pass and its weights; ``Refer(cache=...)`` saves the pass from the second epoch on.
    Interactions: a sample is a whole sequence, so let your step pass logits of the shape (N, C, T) to its criterion, as
    ``F.cross_entropy(logits.transpose(1, 2), tokens)``. Each sequence counts the same, however long it is. The gradient
    begins at about half of cross entropy's where both networks agree. The logged value is no perplexity. Class weights
    and label smoothing of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> loss = PreferenceOrientedSFTLoss()
        >>> loss(torch.zeros(1, 2, 3), torch.tensor([[0, 1, 0]]), torch.zeros(1, 2, 3))  # log 2
        tensor([0.6931])

    Paper: Fan et al., Preference-Oriented Supervised Fine-Tuning: Favoring Target Model Over Aligned Large Language
    Models, AAAI 2025, https://arxiv.org/abs/2412.12865.
    """

    function = staticmethod(preference_oriented_sft_loss)
    family = "fine-tuning"
    problems = ("classes",)
    unit: ClassVar[Literal["row", "sample"]] = "sample"

    def forward(self, logits: Tensor, target: Tensor, reference_logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, C, ...) logits, (N, ...) classes, (N, C, ...) logits of the reference, (N, ...) what counts -> (N,)."""
        return preference_oriented_sft_loss(logits, target, reference_logits, mask)
