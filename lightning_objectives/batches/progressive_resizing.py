"""Progressive resizing: training begins on small images."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.batches.cutmix import IMAGES
from lightning_objectives.kinds import BatchTransform
from lightning_objectives.shapes import check_shapes

Mode = Literal["resize", "crop"]


def progressive_size(
    height: int,
    width: int,
    progress: float,
    *,
    initial_scale: float = 0.5,
    delay_fraction: float = 0.5,
    finetune_fraction: float = 0.2,
    size_increment: int = 4,
) -> tuple[int, int]:
    r"""Compute the size of the images at one moment of a training.

    The scale is :math:`s_0` until the part :math:`d` of the training is done, then grows linearly to 1, which it
    reaches when the part :math:`f` is left. The width is the multiple of ``size_increment`` nearest to it, and the
    height keeps the ratio of the sides, rounded down.

    Args:
        height: of the whole images, in pixels.
        width: of the whole images.
        progress: the part of the training that is done, in [0, 1].
        initial_scale: :math:`s_0 \in (0, 1]`.
        delay_fraction: :math:`d \ge 0`.
        finetune_fraction: :math:`f \ge 0`, with :math:`d + f \le 1`.
        size_increment: in pixels, at least 1.

    Returns:
        the height and the width, at least 1 and at most those of the whole images.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> progressive_size(30, 32, 0.65), progressive_size(30, 32, 0.5), progressive_size(30, 32, 0.8)
        ((22, 24), (15, 16), (30, 32))
    """
    _check(initial_scale, delay_fraction, finetune_fraction, size_increment)
    if progress >= 1 - finetune_fraction:
        return height, width
    growing = 1 - finetune_fraction - delay_fraction
    done = min(max((progress - delay_fraction) / growing, 0.0), 1.0) if growing > 0 else 0.0
    scale = initial_scale + (1 - initial_scale) * done
    new_width = min(max(round(width * scale / size_increment) * size_increment, 1), width)
    return max(height * new_width // width, 1), new_width


def _check(initial_scale: float, delay_fraction: float, finetune_fraction: float, size_increment: int) -> None:
    if not 0 < initial_scale <= 1:
        raise ValueError(f"initial_scale={initial_scale} must be in (0, 1]; 1 keeps the images whole.")
    if not (delay_fraction >= 0 and finetune_fraction >= 0 and delay_fraction + finetune_fraction <= 1):
        raise ValueError(
            f"delay_fraction={delay_fraction} and finetune_fraction={finetune_fraction} must be >= 0, and 1 together "
            "at most: they are parts of the training."
        )
    if size_increment < 1:
        raise ValueError(f"size_increment={size_increment} must be >= 1, in pixels.")


class ProgressiveResizing(BatchTransform):
    r"""Makes the first part of a training cheap: begins on small images, and ends on whole ones.

    The sizes are those of :func:`progressive_size`.

    Args:
        mode: ``"resize"`` makes images smaller; ``"crop"`` takes a part of each batch's images, at one random place.
        initial_scale: the scale of the sides at the start.
        delay_fraction: the part of the training with the images of the start.
        finetune_fraction: the part of the training with whole images, at the end.
        size_increment: widths are multiples of it. Take 32 for a network that halves five times.

    Raises:
        ValueError: a setting outside its range, images of whole numbers, or, in the training, a criterion that compares
            positions, whose targets would keep their size.

    When to use: to classify images by a network for any size, as one with a global pooling, where its passes take most
    of the time.
    Cost: less than none: a pass over images of half the side takes about a quarter of the time.
    Interactions: evaluation sees whole images. A compiled network is compiled anew for each size, and cuDNN's benchmark
    tries each anew: raise ``size_increment``.

    Example:
        >>> images, index, weight = ProgressiveResizing()(
        ...     torch.rand(2, 3, 8, 8), torch.tensor(0.0), torch.Generator().manual_seed(0)
        ... )
        >>> images.shape, index.tolist(), weight.tolist()
        (torch.Size([2, 3, 4, 4]), [[0], [1]], [[1.0], [1.0]])

    Paper: the schedule is that of the library composer, https://docs.mosaicml.com/projects/composer, after Howard,
    Training ImageNet in 3 hours for 25 minutes, https://www.fast.ai/posts/2018-04-30-dawnbench-fastai.html.

    Differs from composer: images are made smaller by bilinear interpolation with antialiasing, where its code takes the
    nearest pixel.
    """

    keeps_size: ClassVar[bool] = False

    def __init__(
        self,
        *,
        mode: Mode = "resize",
        initial_scale: float = 0.5,
        delay_fraction: float = 0.5,
        finetune_fraction: float = 0.2,
        size_increment: int = 4,
    ) -> None:
        super().__init__()
        if mode not in ("resize", "crop"):
            raise ValueError(f"mode={mode!r} must be 'resize' or 'crop'.")
        _check(initial_scale, delay_fraction, finetune_fraction, size_increment)
        self.mode: Mode = mode
        self.initial_scale = initial_scale
        self.delay_fraction = delay_fraction
        self.finetune_fraction = finetune_fraction
        self.size_increment = size_increment

    def active(self, *, step: int) -> bool:
        """Return False at ``initial_scale=1``, where images are always whole."""
        return self.initial_scale < 1

    def forward(self, inputs: Tensor, progress: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) images and the part of the training that is done -> smaller images, (N, 1) index and weight."""
        check_shapes(IMAGES, inputs=inputs)
        if inputs.dim() != 4 or not inputs.is_floating_point():
            raise ValueError(
                f"inputs of the shape {tuple(inputs.shape)}, {inputs.dtype}, must be (N, C, H, W) images of floating "
                "point numbers to be made smaller. Convert them by inputs.float()."
            )
        height, width = inputs.shape[2:]
        size = progressive_size(
            height,
            width,
            float(progress),
            initial_scale=self.initial_scale,
            delay_fraction=self.delay_fraction,
            finetune_fraction=self.finetune_fraction,
            size_increment=self.size_increment,
        )
        if self.mode == "crop":
            rooms = height - size[0] + 1, width - size[1] + 1
            top, left = (int(torch.randint(room, (), generator=generator)) for room in rooms)
            images = inputs[:, :, top : top + size[0], left : left + size[1]].contiguous()
        elif size == (height, width):
            images = inputs
        else:
            images = F.interpolate(inputs, size, mode="bilinear", align_corners=False, antialias=True)
        index = torch.arange(len(inputs), device=inputs.device)[:, None]
        return images, index, torch.ones(len(inputs), 1, device=inputs.device)
