"""Random erasing."""

import math

import torch
from torch import Tensor

from lightning_objectives.batches.cutmix import IMAGES
from lightning_objectives.kinds import BatchTransform
from lightning_objectives.shapes import check_shapes, forms

_BOXES = {"boxes": forms("(N, B) int")}
_TRIES = 10
"""How many boxes torchvision draws for an image, until one fits into it."""


def erase_boxes(inputs: Tensor, boxes: Tensor, *, value: float | Tensor = 0.0) -> Tensor:
    """Overwrite a box of each image.

    Args:
        inputs: (N, ..., H, W) images, which are not changed.
        boxes: (N, 4) int: top, bottom, left, right of each box; the ends are excluded. Pixels outside the image count
            for nothing, and an empty box erases nothing.
        value: what to write: a number, or a tensor of the shape of the inputs.

    Returns:
        (N, ..., H, W) new images, in the type of the inputs.

    Raises:
        ValueError: the inputs are not images, because they have fewer than three dimensions or no pixels; there is not
            one box for each; or a part of a number cannot be written into whole numbers.

    Example:
        >>> erase_boxes(torch.ones(1, 2, 3), torch.tensor([[0, 1, 1, 3]]))
        tensor([[[1., 0., 0.],
                 [1., 1., 1.]]])
    """
    check_shapes(IMAGES | _BOXES, inputs=inputs, boxes=boxes)
    if boxes.shape[1] != 4:
        raise ValueError(f"boxes of the shape {tuple(boxes.shape)} must be (N, 4): top, bottom, left and right.")
    if not inputs.is_floating_point() and (isinstance(value, Tensor) or value != int(value)):
        raise ValueError(
            f"Inputs of {inputs.dtype} hold whole numbers, so a value such as {value} must be whole too: erase with 0, "
            "or convert the images by inputs.float()."
        )
    top, bottom, left, right = boxes.to(inputs.device, non_blocking=True)[..., None].unbind(1)
    rows, columns = (torch.arange(size, device=inputs.device) for size in inputs.shape[-2:])
    erased = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
    erased = erased.view(len(inputs), *[1] * (inputs.dim() - 3), *erased.shape[1:])
    if isinstance(value, Tensor):
        return torch.where(erased, value.to(inputs.dtype), inputs)
    return inputs.masked_fill(erased, value if inputs.is_floating_point() else int(value))


def draw_boxes(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    *,
    min_area: float = 0.02,
    max_area: float = 0.4,
    min_ratio: float = 0.3,
) -> Tensor:
    r"""Draw boxes of random area, shape and place within images.

    A box has the area a and the ratio r of height to width, both drawn: a uniformly, and r uniformly on a logarithmic
    scale between ``min_ratio`` and its inverse. Its height is :math:`\sqrt{a r}` and its width :math:`\sqrt{a / r}`,
    rounded. A box that is as high or as wide as the image is drawn anew, up to 10 times. Its place is uniform.

    Args:
        count: N.
        height: of the images.
        width: of the images.
        generator: where all draws come from, on the CPU.
        min_area: the least area, as a part of the image's.
        max_area: the greatest area.
        min_ratio: the least ratio, in (0, 1].

    Returns:
        (N, 4) int, on the CPU: top, bottom, left, right of each box. It is empty if none fitted.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> settings = {"min_area": 0.1, "max_area": 0.1, "min_ratio": 1.0}  # 10 of 10 by 10 pixels: 3 by 3
        >>> top, bottom, left, right = draw_boxes(1, 10, 10, torch.Generator(), **settings)[0]
        >>> bottom - top, right - left
        (tensor(3), tensor(3))
    """
    _check(min_area, max_area, min_ratio)
    area, ratio, row, column = torch.rand(4, count, _TRIES, generator=generator, dtype=torch.float64)
    area = height * width * (min_area + (max_area - min_area) * area)
    ratio = (math.log(min_ratio) * (2 * ratio - 1)).exp()
    high, wide = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (high < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    high, wide = (torch.where(fits, size, 0).gather(1, first)[:, 0] for size in (high, wide))
    top, left = ((draw[:, 0] * (1 + room)).long() for draw, room in ((row, height - high), (column, width - wide)))
    return torch.stack([top, top + high, left, left + wide], 1)


def _check(min_area: float, max_area: float, min_ratio: float) -> None:
    if not 0 <= min_area <= max_area <= 1:
        raise ValueError(
            f"min_area={min_area} and max_area={max_area} must be parts of an image: 0 <= min_area <= max_area <= 1."
        )
    if not 0 < min_ratio <= 1:
        raise ValueError(f"min_ratio={min_ratio} must be in (0, 1]; 1 draws squares alone.")


class RandomErasing(BatchTransform):
    r"""Regularizes training: erases a box of some images of each batch, so that no part of an image is relied upon.

    Each image has a box of its own, from :func:`draw_boxes`, which :func:`erase_boxes` overwrites. The labels stay.

    Args:
        prob: the probability that an image is changed.
        min_area: the least area of a box, as a part of the image's.
        max_area: the greatest area.
        min_ratio: the least ratio of a box's height to its width, in (0, 1]; the greatest is its inverse.
        value: what is written into the box. 0 is the mean of images that are normalized.
        noise: writes a standard normal number into each pixel in place of ``value``.

    Raises:
        ValueError: a setting outside its range, or noise for whole numbers.

    When to use: in trainings of image classifiers, beside flips and crops. The paper uses these settings for CIFAR and
    Fashion-MNIST; ImageNet recipes of timm take ``prob=0.25`` and noise.
    Cost: one copy of the inputs. ``noise`` also draws a number for each pixel, on the CPU.
    Interactions: use it after the normalization of the images. It acts on whole batches, so leave it out of the data
    set's transforms. Losses of samples are those of the plain criterion.

    Example:
        >>> images, index, weight = RandomErasing(prob=1.0)(torch.ones(4, 3, 8, 8), torch.Generator().manual_seed(0))
        >>> (images == 0).any(), index.T, weight.T
        (tensor(True), tensor([[0, 1, 2, 3]]), tensor([[1., 1., 1., 1.]]))

    Paper: Zhong et al., Random Erasing Data Augmentation, AAAI 2020, algorithm 1, https://arxiv.org/abs/1708.04896.

    Differs from the paper: the logarithm of the ratio is uniform, as in torchvision and timm, so that high and wide
    boxes are equally likely. The paper draws the ratio itself. An image that no box of 10 fits into stays as it is.
    """

    def __init__(
        self,
        *,
        prob: float = 0.5,
        min_area: float = 0.02,
        max_area: float = 0.4,
        min_ratio: float = 0.3,
        value: float = 0.0,
        noise: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= prob <= 1:
            raise ValueError(f"prob={prob} must be in [0, 1].")
        _check(min_area, max_area, min_ratio)
        self.prob = prob
        self.min_area = min_area
        self.max_area = max_area
        self.min_ratio = min_ratio
        self.value = value
        self.noise = noise

    def active(self, *, step: int) -> bool:
        """Return False at ``prob=0``, where no image is changed."""
        return self.prob > 0

    def forward(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(N, ..., H, W) inputs -> (N, ..., H, W) inputs, (N, 1) index, (N, 1) weight."""
        check_shapes(IMAGES, inputs=inputs)
        count, (height, width) = len(inputs), inputs.shape[-2:]
        areas = {"min_area": self.min_area, "max_area": self.max_area}
        boxes = draw_boxes(count, height, width, generator, min_ratio=self.min_ratio, **areas)
        boxes *= torch.rand(count, 1, generator=generator) < self.prob  # The box (0, 0, 0, 0) is empty.
        value: float | Tensor = self.value
        if self.noise:
            value = torch.randn(inputs.shape, generator=generator).to(inputs.device, non_blocking=True)
        return erase_boxes(inputs, boxes, value=value), *own_labels(inputs)


def own_labels(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Build the ``index`` (N, 1) and ``weight`` (N, 1) of rows that keep their own labels.

    >>> own_labels(torch.zeros(2, 3))
    (tensor([[0],
             [1]]), tensor([[1.],
                            [1.]]))
    """
    return torch.arange(len(inputs), device=inputs.device)[:, None], torch.ones(len(inputs), 1, device=inputs.device)
