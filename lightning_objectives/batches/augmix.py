"""AugMix."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.batches._by_image import by_image, check_statistics
from lightning_objectives.batches.random_erasing import own_labels
from lightning_objectives.kinds import BatchTransform


class AugMix(BatchTransform):
    r"""Makes image classifiers robust to corruptions: mixes each image with several chains of distortions of it.

    .. math::
        x' = (1 - m) \, x + m \sum_i w_i \, c_i(x), \qquad w \sim \operatorname{Dirichlet}(\alpha), \quad
        m \sim \operatorname{Beta}(\alpha, \alpha)

    with chains :math:`c_i` of 1 to 3 operations. The labels stay. The transform is that of
    ``torchvision.transforms.v2.AugMix``, on each image by itself and with draws of a stream of its own.

    Args:
        severity: how strong the operations are at most, from 1 to 10.
        width: the number of chains.
        depth: the number of operations in a chain; -1 draws 1, 2 or 3 for each.
        alpha: of the distributions, > 0.
        all_ops: whether color operations take part too, which overlap with the corruptions of ImageNet-C. The authors'
            code leaves them out, torchvision takes them.
        mean: of the normalization of the images, a number for each channel or one for all; None for pixels in [0, 1] or
            of 8 bits.
        std: of the normalization.

    Raises:
        ValueError: a setting outside its range; in the training, images whose pixels are unknown: floats outside [0, 1]
            without ``mean`` and ``std``.

    When to use: if the images of the test are noisier, blurrier or darker than those of the training.
    Cost: 2.7 ms of one core for an image of 32 x 32 pixels, and 11 ms for 224 x 224, as measured once; in the data
    set's transforms the workers pay it. On a GPU each step waits: torchvision's operations ask the device for values,
    such as the histogram of an image.
    Interactions: the paper trains on the clean images and adds a consistency term over two distorted views, which is
    ``AugMixConsistency``. This transform alone has a part of the paper's gain.

    Example:
        >>> images = torch.rand(4, 3, 8, 8)
        >>> mixed, index, weight = AugMix()(images, torch.Generator().manual_seed(0))
        >>> mixed.shape, weight.T
        (torch.Size([4, 3, 8, 8]), tensor([[1., 1., 1., 1.]]))

    Paper: Hendrycks et al., AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty, ICLR 2020,
    algorithm 1, https://arxiv.org/abs/1912.02781. The algorithm's number was not checked at the source.

    Differs from the paper: the loss is that of the distorted images, without the Jensen-Shannon term, which
    ``AugMixConsistency`` adds; torchvision draws whole levels of an operation, also 0.
    """

    family = "robustness"
    example: ClassVar[dict[str, Any]] = {"mean": (0.5,), "std": (0.1,)}
    waits = "torchvision's operations ask the device for values, such as the histogram of an image"

    def __init__(
        self,
        *,
        severity: int = 3,
        width: int = 3,
        depth: int = -1,
        alpha: float = 1.0,
        all_ops: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= severity <= 10:
            raise ValueError(f"severity={severity} must be in [1, 10].")
        if width < 1:
            raise ValueError(f"width={width} must be >= 1: the number of chains.")
        if depth != -1 and depth < 1:
            raise ValueError(f"depth={depth} must be >= 1, or -1 to draw it.")
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha={alpha} must be > 0 and finite.")
        check_statistics(mean, std)
        self.severity = severity
        self.width = width
        self.depth = depth
        self.alpha = alpha
        self.all_ops = all_ops
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)

    def forward(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) images -> (N, C, H, W) images, (N, 1) index, (N, 1) weight."""
        from torchvision.transforms import v2  # here, because it takes a second to load

        settings: dict[str, Any] = {"severity": self.severity, "mixture_width": self.width, "chain_depth": self.depth}
        make = partial(v2.AugMix, **settings, alpha=self.alpha, all_ops=self.all_ops)
        return by_image(make, inputs, generator, mean=self.mean, std=self.std), *own_labels(inputs)
