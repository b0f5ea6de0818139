"""Runs transforms of torchvision on each image of a batch, with draws of a stream of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.batches.cutmix import IMAGES
from lightning_objectives.shapes import check_shapes

_LEAST = 1e-3
"""How far a pixel may lie outside of [0, 1]: what the rounding of a normalization leaves."""
Statistics = Sequence[float] | None


def check_statistics(mean: Statistics, std: Statistics) -> None:
    """Refuse a mean without a standard deviation, and others that cannot be."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean={mean} and std={std} belong together: give both, those of your normalization, or none.")
    if mean is not None and std is not None and (len(mean) != len(std) or not all(value > 0 for value in std)):
        raise ValueError(f"std={std} must have a positive number for each of the {len(mean)} channels of mean={mean}.")


def by_image(
    make: Callable[[], Any], inputs: Tensor, generator: torch.Generator, *, mean: Statistics, std: Statistics
) -> Tensor:
    """Transform each image by itself: as torchvision would in the data set, and not a whole batch by one draw.

    Args:
        make: builds the transform of torchvision.
        inputs: (N, C, H, W) images: whole numbers of 8 bits, or floats that are pixels of [0, 1], normalized by
            ``mean`` and ``std`` if these are given.
        generator: where the draws come from; the global stream stays as it is.
        mean: of the normalization, one for each channel or one for all.
        std: of the normalization.

    Raises:
        ValueError: other inputs, or pixels outside of [0, 1].
    """
    check_shapes(IMAGES, inputs=inputs)
    if inputs.dim() != 4 or inputs.shape[1] not in (1, 3):
        raise ValueError(f"inputs of the shape {tuple(inputs.shape)} must be images (N, C, H, W) of 1 or 3 channels.")
    if not inputs.is_floating_point():
        if inputs.dtype != torch.uint8:
            raise ValueError(f"Images of {inputs.dtype} must be of torch.uint8, 0 to 255, or floats.")
        return _each(make, inputs, generator)
    pixels = inputs.detach().float()
    if mean is not None and std is not None:
        center, scale = (torch.tensor(value, device=inputs.device)[:, None, None] for value in (mean, std))
        if len(center) not in (1, inputs.shape[1]):
            raise ValueError(f"mean={mean} has {len(center)} channels, but the images have {inputs.shape[1]}.")
        pixels = pixels * scale + center
    _check_range(pixels)
    pixels = _each(make, pixels.clamp(0, 1), generator)
    if mean is not None:
        pixels = (pixels - center) / scale
    return pixels.to(inputs.dtype)


def _each(make: Callable[[], Any], images: Tensor, generator: torch.Generator) -> Tensor:
    transform = make()
    seed = int(torch.randint(2**62, (), generator=generator))
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return torch.stack([transform(image) for image in images])


def _check_range(pixels: Tensor) -> None:
    within = ((pixels >= -_LEAST) & (pixels <= 1 + _LEAST)).all()
    message = (
        "The images are floats outside of [0, 1], so it is unknown what black and white are. If they are normalized, "
        "give mean= and std= of the normalization; else convert them by images / 255."
    )
    if pixels.device.type == "cpu":
        if not within:
            raise ValueError(f"{message} Theirs are {pixels.min():.3g} to {pixels.max():.3g}.")
    else:
        torch._assert_async(within, message)  # without a wait for the device
