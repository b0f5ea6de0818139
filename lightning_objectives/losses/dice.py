"""Dice loss: the overlap of predicted and true regions."""

from typing import ClassVar, Literal

from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._regions import WHOLE_BATCH, by_sample, quotient, regions


def dice_loss(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    smooth: float = 1.0,
    squared: bool = False,
    whole_batch: bool = False,
) -> Tensor:
    r"""Compute one minus the Dice overlap of each image, in the mean over the classes.

    .. math::
        \ell = \frac1C \sum_k 1 - \frac{2 I_k + s}{P_k + T_k + s}, \qquad I_k = \sum_i p_{ik} t_{ik}

    with :math:`P_k = \sum_i p_{ik}` and :math:`T_k = \sum_i t_{ik}` over the positions i, or the sums of the squares.
    For soft targets :math:`I_k = \frac12 (P_k + T_k - \sum_i |p_{ik} - t_{ik}|)`, which is the same for targets of 0
    and 1, and is largest at :math:`p = t`.

    Args:
        logits: (N, C, ...); C of 1 is a sigmoid, of more a softmax. Computed in float32 or better.
        target: (N, ...) int classes, or (N, C, ...) float shares.
        mask: (N, ...) bool, the positions that count; None for all.
        smooth: :math:`s \ge 0`.
        squared: sum the squares, as V-Net does.
        whole_batch: take all sums over the batch, and give each image the loss of the batch.

    Returns:
        (N,) losses. A class that is neither predicted nor there costs nothing; without ``smooth`` neither does one
        without any position.

    Raises:
        ValueError: shapes that do not fit, or a negative ``smooth``.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.9, 0.6, 0.2, 0.1]]).logit()[:, None]
        >>> dice_loss(logits, torch.tensor([[1, 1, 0, 0]]), smooth=0.0)  # 1 - 2 · 1.5 / (1.8 + 2)
        tensor([0.2105])

    Paper: Milletari et al., V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation, 3DV
    2016, https://arxiv.org/abs/1606.04797, with squares. Libraries differ in what they sum over, in absent classes
    and in where ``smooth`` stands; this is monai's form, with absent classes included.
    """
    _check(smooth)
    both, predicted, wanted = regions(logits, target, mask, squared=squared, whole_batch=whole_batch)
    overlap = quotient(2 * both + smooth, predicted + wanted + smooth)
    return by_sample(1 - overlap, len(logits))


def _check(smooth: float) -> None:
    if not 0 <= smooth < float("inf"):
        raise ValueError(f"smooth={smooth} must be >= 0 and finite; 0 is the plain overlap.")


class DiceLoss(Loss):
    r"""Trains a segmentation on the overlap of regions, so that small regions count as much as large ones.

    The losses are those of :func:`dice_loss`.

    Args:
        smooth: :math:`s`, which keeps a class without any position from a jump.
        squared: sum squares.
        whole_batch: the overlap of the whole batch; by default that of each image.

    Raises:
        ValueError: a negative ``smooth``.

    When to use: for segmentation with small or rare regions, often beside cross entropy.
    Cost: that of a softmax.
    Interactions: ignored positions leave all sums. Two classes by one logit use the sigmoid, and the background has no
    overlap of its own. With ``whole_batch`` each process takes the overlap of its own batch, which is not that of the
    joined batch.

    Example:
        >>> DiceLoss(smooth=0.0)
        DiceLoss(smooth=0.0, squared=False, whole_batch=False)
    """

    function = staticmethod(dice_loss)
    family = "segmentation"
    problems = ("classes", "binary")
    unit: ClassVar[Literal["row", "sample"]] = "sample"

    def __init__(self, *, smooth: float = 1.0, squared: bool = False, whole_batch: bool = False) -> None:
        super().__init__()
        _check(smooth)
        self.smooth = smooth
        self.squared = squared
        self.whole_batch = whole_batch
        self.coupled = WHOLE_BATCH if whole_batch else ""

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, C, ...) logits, (N, ...) classes or (N, C, ...) shares, and (N, ...) what counts -> (N,) losses."""
        return dice_loss(logits, target, mask, smooth=self.smooth, squared=self.squared, whole_batch=self.whole_batch)
