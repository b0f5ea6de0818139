"""Mixup or CutMix, by a draw for each batch."""

import torch
from torch import Tensor

from lightning_objectives.batches.cutmix import IMAGES, CutMix
from lightning_objectives.batches.mixup import Mixup
from lightning_objectives.kinds import BatchTransform
from lightning_objectives.shapes import check_shapes


class MixupOrCutMix(BatchTransform):
    """Regularizes training: draws Mixup or CutMix for each batch, as timm's ``Mixup`` with both of its strengths does.

    Args:
        mixup_alpha: the strength of :class:`~lightning_objectives.batches.Mixup`; DeiT's is 0.8.
        cutmix_alpha: the strength of :class:`~lightning_objectives.batches.CutMix`.
        prob: the probability that a batch is mixed at all.
        switch_prob: the probability that a mixed batch gets CutMix.

    Raises:
        ValueError: a setting outside its range.

    When to use: on ImageNet from scratch, above all for ViTs.
    Cost: one pass over the inputs.
    Interactions: those of Mixup and CutMix.

    Example:
        >>> images, index, weight = MixupOrCutMix()(torch.rand(4, 3, 8, 8), torch.Generator().manual_seed(0))
        >>> images.shape, index.shape, weight.sum(1)
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 2]), tensor([1., 1., 1., 1.]))

    Paper: Touvron et al., Training Data-efficient Image Transformers & Distillation through Attention, ICML 2021,
    https://arxiv.org/abs/2012.12877.
    """

    def __init__(
        self, *, mixup_alpha: float = 0.8, cutmix_alpha: float = 1.0, prob: float = 1.0, switch_prob: float = 0.5
    ) -> None:
        super().__init__()
        if not 0 <= switch_prob <= 1:
            raise ValueError(f"switch_prob={switch_prob} must be in [0, 1].")
        self.mixup = Mixup(alpha=mixup_alpha, prob=prob)
        self.cutmix = CutMix(alpha=cutmix_alpha, prob=prob)
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.prob = prob
        self.switch_prob = switch_prob

    def active(self, *, step: int) -> bool:
        """Return False at ``prob=0``, where no batch is mixed."""
        return self.prob > 0

    def forward(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(N, ..., H, W) inputs -> (N, ..., H, W) inputs, (N, 2) index, (N, 2) weight."""
        if self.switch_prob > 0:  # also for a batch that gets Mixup, or the error would come at a random step
            check_shapes(IMAGES, inputs=inputs)
        cut = torch.rand((), generator=generator) < self.switch_prob
        return (self.cutmix if cut else self.mixup).forward(inputs, generator)
