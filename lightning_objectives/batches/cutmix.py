"""CutMix."""

import torch
from torch import Tensor

from lightning_objectives.batches.mixup import PARTNER, check_mixing, check_share, draw_share, mixed_labels
from lightning_objectives.kinds import BatchTransform
from lightning_objectives.shapes import check_shapes, forms

IMAGES = {"inputs": forms("(N, ..., H, W)")}
"""The form of images."""


def cutmix_box(height: int, width: int, share: float, centre: tuple[int, int]) -> tuple[int, int, int, int]:
    r"""Compute the box around a centre that covers :math:`1 - \lambda` of an image, cut off at the image's borders.

    Returns:
        top, bottom, left, right; the ends are excluded.

    Raises:
        ValueError: the share is outside [0, 1].

    >>> cutmix_box(8, 8, 0.75, (1, 4))  # 4 by 4, with one row outside
    (0, 3, 2, 6)
    """
    check_share(share)
    ratio = (1 - share) ** 0.5
    ends = []
    for size, middle in zip((height, width), centre):
        length = int(size * ratio)
        ends += [max(0, middle - length // 2), min(size, middle + (length + 1) // 2)]
    return ends[0], ends[1], ends[2], ends[3]


def cutmix(inputs: Tensor, partner: Tensor, box: tuple[int, int, int, int]) -> tuple[Tensor, float]:
    """Replace a box of each image by the same box of its partner.

    Args:
        inputs: (N, ..., H, W) images, which are not changed.
        partner: (N,) int, the image that the box comes from.
        box: top, bottom, left, right, from :func:`cutmix_box`.

    Returns:
        (N, ..., H, W) new images, and the share of the area that is each image's own.

    Raises:
        ValueError: the inputs are not images, because they have fewer than three dimensions or no pixels; there is not
            one partner for each; or the box does not lie within the images.

    Example:
        >>> images, share = cutmix(torch.arange(2.0).view(2, 1, 1).expand(2, 2, 2), torch.tensor([1, 0]), (0, 1, 0, 1))
        >>> images[0], share
        (tensor([[1., 0.],
                 [0., 0.]]), 0.75)
    """
    check_shapes(IMAGES | PARTNER, inputs=inputs, partner=partner)
    top, bottom, left, right = box
    height, width = inputs.shape[-2:]
    if not (0 <= top <= bottom <= height and 0 <= left <= right <= width):
        raise ValueError(
            f"box={box} must be (top, bottom, left, right) within the {height} by {width} pixels of the images: the "
            "share of a box that is cut off would be wrong. Compute it by cutmix_box."
        )
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = inputs[partner.long()][..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


class CutMix(BatchTransform):
    r"""Regularizes training: puts a box of another image into every image of a batch, and mixes the labels by area.

    The images are mixed by :func:`cutmix`. Each batch draws one box of the area :math:`1 - \lambda`, with
    :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)`, around a uniform centre. The box is cut off at the borders.

    Args:
        alpha: :math:`\alpha > 0`; the paper's is 1.
        prob: the probability that a batch is mixed; the paper's is 1 on ImageNet, 0.5 on CIFAR.

    Raises:
        ValueError: a setting outside its range.

    When to use: in long trainings of image classifiers.
    Cost: one copy of the inputs.
    Interactions: those of Mixup.

    Example:
        >>> images, index, weight = CutMix()(torch.rand(4, 3, 8, 8), torch.Generator().manual_seed(0))
        >>> images.shape, index.shape, weight.sum(1)
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 2]), tensor([1., 1., 1., 1.]))

    Paper: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV 2019,
    https://arxiv.org/abs/1905.04899.

    Differs from the paper: nothing. The labels' shares follow the box as it is after the cut, as in the released code
    and in timm's ``correct_lam=True``.
    """

    exemplar = True

    def __init__(self, *, alpha: float = 1.0, prob: float = 1.0) -> None:
        super().__init__()
        check_mixing({"alpha": alpha}, prob)
        self.alpha = alpha
        self.prob = prob

    def active(self, *, step: int) -> bool:
        """Return False at ``prob=0``, where no batch is mixed."""
        return self.prob > 0

    def forward(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(N, ..., H, W) inputs -> (N, ..., H, W) inputs, (N, 2) index, (N, 2) weight."""
        check_shapes(IMAGES, inputs=inputs)
        partner = torch.randperm(len(inputs), generator=generator).to(inputs.device, non_blocking=True)
        if torch.rand((), generator=generator) >= self.prob:
            return inputs, *mixed_labels(partner, 1.0)
        height, width = inputs.shape[-2:]
        centre = [int(torch.randint(size, (), generator=generator)) for size in (height, width)]
        box = cutmix_box(height, width, draw_share(self.alpha, generator), (centre[0], centre[1]))
        mixed, share = cutmix(inputs, partner, box)
        return mixed, *mixed_labels(partner, share)
