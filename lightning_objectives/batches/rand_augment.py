"""RandAugment."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.batches._by_image import by_image, check_statistics
from lightning_objectives.batches.random_erasing import own_labels
from lightning_objectives.kinds import BatchTransform


class RandAugment(BatchTransform):
    """Regularizes image classifiers by random distortions, with two settings in place of a searched policy.

    Each image gets ``num_ops`` of torchvision's 14 operations, drawn with replacement: shear, translate, rotate,
    brightness, color, contrast, sharpness, posterize, solarize, auto-contrast, equalize and none, all of one magnitude.
    The labels stay. The transform is that of ``torchvision.transforms.v2.RandAugment``, on each image by itself and
    with draws of a stream of its own.

    Args:
        num_ops: the number of operations on each image; 0 changes nothing.
        magnitude: from 0 to 30, in parts of each operation's range.
        mean: of the normalization of the images, a number for each channel or one for all; None for pixels in [0, 1] or
            of 8 bits.
        std: of the normalization.

    Raises:
        ValueError: a setting outside its range; in the training, images whose pixels are unknown: floats outside [0, 1]
            without ``mean`` and ``std``.

    When to use: to train image classifiers from scratch for long. The paper takes 2 operations, and magnitudes from 9
    for ImageNet to 14 for CIFAR with wide networks; those of the paper were not checked at the source.
    Cost: 0.7 ms of one core for an image of 32 x 32 pixels, and 4 ms for 224 x 224, as measured once; in the data
    set's transforms the workers pay it. On a GPU each step waits: torchvision's operations ask the device for values,
    such as the histogram of an image.
    Interactions: put it before mixing and before erasing. timm's magnitudes are three times as strong as torchvision's,
    which are these. The clean images that a teacher's cache knows are no longer those of the step.

    Example:
        >>> images = torch.rand(4, 3, 8, 8)
        >>> augmented, index, weight = RandAugment(magnitude=15)(images, torch.Generator().manual_seed(0))
        >>> augmented.shape, index.T
        (torch.Size([4, 3, 8, 8]), tensor([[0, 1, 2, 3]]))

    Paper: Cubuk et al., RandAugment: Practical Automated Data Augmentation with a Reduced Search Space, NeurIPS 2020,
    https://arxiv.org/abs/1909.13719.
    """

    family = "augmentation"
    example: ClassVar[dict[str, Any]] = {"mean": (0.5,), "std": (0.1,)}
    waits = "torchvision's operations ask the device for values, such as the histogram of an image"

    def __init__(
        self,
        *,
        num_ops: int = 2,
        magnitude: int = 9,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if num_ops < 0:
            raise ValueError(f"num_ops={num_ops} must be >= 0; 0 changes nothing.")
        if not 0 <= magnitude <= 30:
            raise ValueError(f"magnitude={magnitude} must be in [0, 30].")
        check_statistics(mean, std)
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)

    def active(self, *, step: int) -> bool:
        """Return False without operations."""
        return self.num_ops > 0

    def forward(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) images -> (N, C, H, W) images, (N, 1) index, (N, 1) weight."""
        from torchvision.transforms import v2  # here, because it takes a second to load

        make = partial(v2.RandAugment, num_ops=self.num_ops, magnitude=self.magnitude)
        return by_image(make, inputs, generator, mean=self.mean, std=self.std), *own_labels(inputs)
