"""AugMix's consistency: two distorted views of an image are seen as the image itself."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.batches import AugMix
from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_classes, check_shapes

_LEAST = 1e-7
"""What the authors' code keeps the mean prediction above."""


def jensen_shannon_divergence(logits: Tensor, others: Sequence[Tensor]) -> Tensor:
    r"""Compute how much the predictions of several passes differ from their mean.

    .. math::
        \frac{1}{V} \sum_v \operatorname{KL}(p_v \,\|\, m), \qquad m = \frac{1}{V} \sum_v p_v

    with :math:`p_v` the softmax of pass v; m is clamped to be :math:`10^{-7}` at least. The gradient flows through all
    passes.

    Args:
        logits: (N, C) of the first pass, in any float type; computed in float32 or better.
        others: one or more logits (N, C) of the other passes.

    Returns:
        (N,) divergences from 0 to log V, but for the clamp.

    Raises:
        ValueError: no other pass, shapes that do not fit, or a single class.

    Example:
        >>> logits = torch.tensor([[[1.0, 2.0, 0.0]], [[0.0, 1.0, 1.0]], [[2.0, 0.0, -1.0]]])
        >>> jensen_shannon_divergence(logits[0], [logits[1], logits[2]])
        tensor([0.2522])
    """
    check_shapes(logits=logits)
    check_classes(logits)
    if not others:
        raise ValueError("others is empty: a pass is compared with one other at least.")
    for other in others:
        if other.shape != logits.shape:
            raise ValueError(
                f"others of the shape {tuple(other.shape)} do not fit logits of the shape {tuple(logits.shape)}: all "
                "passes must have the same shape."
            )
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p = torch.stack([logits, *others]).to(wide).log_softmax(2)
    p = log_p.exp()
    log_p = torch.where(p > 0, log_p, 0.0)  # 0 log 0 is 0, also for a class that is -inf.
    return (p * (log_p - p.mean(0).clamp_min(_LEAST).log())).sum(2).mean(0)


class AugMixConsistency(Regularizer):
    r"""Makes image classifiers robust to corruptions: two distorted views of an image are seen as the image itself.

    Each step distorts the images twice by :class:`AugMix`, and runs the network on both views. The terms are the
    :func:`jensen_shannon_divergence` of the three predictions. The callback multiplies them by 12 if you give no
    ``strength``.

    Args:
        severity: how strong the operations are at most, from 1 to 10.
        width: the number of chains.
        depth: the number of operations in a chain; -1 draws 1, 2 or 3 for each.
        alpha: of the distributions, > 0.
        all_ops: whether color operations take part too, which overlap with the corruptions of ImageNet-C.
        mean: of the normalization of the images, a number for each channel or one for all; None for pixels in [0, 1] or
            of 8 bits.
        std: of the normalization.

    Raises:
        ValueError: a setting that :class:`AugMix` refuses; in the training, images whose pixels are unknown, or shapes
            that do not fit.

    When to use: if the images of the test are noisier, blurrier or darker than those of the training. The model's own
    loss is that of the clean images, as in the paper: do not add ``TransformBatch(AugMix(...))``, unless its loss shall
    be that of a distorted image.
    Cost: two more forward and backward passes, and two times the distortions of :class:`AugMix`. On a GPU each step
    waits: torchvision's operations ask the device for values, such as the histogram of an image.
    Interactions: BatchNorm normalizes each view by itself and keeps the statistics of the clean images; the authors
    run all views as one batch. Each pass draws dropout masks of its own.

    Example:
        >>> images, generator = torch.rand(2, 3, 8, 8), torch.Generator().manual_seed(0)
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
        >>> again = lambda inputs, seed: network(inputs)
        >>> AugMixConsistency()(network(images), images, again, generator).shape
        torch.Size([2])

    Paper: Hendrycks et al., AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty, ICLR 2020,
    https://arxiv.org/abs/1912.02781. The term, and its factor of 12, are those of the authors' code.

    Differs from the authors' code: torchvision draws whole levels of an operation, also 0.
    """

    family = "robustness"
    problems = ("classes",)
    default_strength = 12.0
    coupled = "the draws of one view follow those of the images before it"
    by_process = "each process distorts its own images, by draws of its own"
    waits = AugMix.waits
    example: ClassVar[dict[str, Any]] = {"mean": (0.5,), "std": (0.1,)}
    unkept_laws: ClassVar[dict[str, str]] = {
        "the_gradient_is_that_of_finite_differences": "the distortions have no gradient for the images"
    }

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
        self._distort = AugMix(
            severity=severity, width=width, depth=depth, alpha=alpha, all_ops=all_ops, mean=mean, std=std
        )
        self.severity = severity
        self.width = width
        self.depth = depth
        self.alpha = alpha
        self.all_ops = all_ops
        self.mean = self._distort.mean
        self.std = self._distort.std

    def forward(
        self, logits: Tensor, inputs: Tensor, again: Callable[..., Tensor], generator: torch.Generator
    ) -> Tensor:
        """(N, C) logits, the images (N, C, H, W), and two more passes -> (N,) terms."""
        check_shapes(logits=logits, inputs=inputs)
        views = [self._distort(inputs, generator)[0] for _ in range(2)]
        return jensen_shannon_divergence(logits, [again(view, seed=number) for number, view in enumerate(views)])
