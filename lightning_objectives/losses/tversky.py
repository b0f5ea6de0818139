"""Tversky loss: an overlap that weights what is missed and what is wrong."""

from typing import ClassVar, Literal

from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._regions import by_sample, quotient, regions


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    weight_fp: float = 0.3,
    weight_fn: float = 0.7,
    smooth: float = 1.0,
    exponent: float = 1.0,
) -> Tensor:
    r"""Compute one minus the Tversky overlap of each image, to a power, in the mean over the classes.

    .. math::
        \ell = \frac1C \sum_k \left( 1 - \frac{I_k + s}{I_k + a\, F_k + b\, M_k + s} \right)^q

    with :math:`I_k` the overlap of :func:`dice_loss`, :math:`F_k = P_k - I_k` what is predicted and not there, and
    :math:`M_k = T_k - I_k` what is there and not predicted.

    Args:
        logits: (N, C, ...); C of 1 is a sigmoid, of more a softmax. Computed in float32 or better.
        target: (N, ...) int classes, or (N, C, ...) float shares.
        mask: (N, ...) bool, the positions that count; None for all.
        weight_fp: :math:`a \ge 0`, for false positives.
        weight_fn: :math:`b \ge 0`, for false negatives. Both 1/2 is Dice with twice the ``smooth``, both 1 Jaccard.
        smooth: :math:`s \ge 0`.
        exponent: :math:`q > 0`; 0.75 is the focal form.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, or a setting outside its range.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.9, 0.6, 0.2, 0.1]]).logit()[:, None]
        >>> tversky_loss(logits, torch.tensor([[1, 1, 0, 0]]), smooth=0.0)  # 1 - 1.5 / (1.5 + 0.3 · 0.3 + 0.7 · 0.5)
        tensor([0.2268])

    Paper: Salehi et al., Tversky loss function for image segmentation using 3D fully convolutional deep networks, MLMI
    2017, https://arxiv.org/abs/1706.05721; the power is that of Abraham and Khan, A Novel Focal Tversky Loss Function,
    ISBI 2019, https://arxiv.org/abs/1810.07842. Not checked at the source: the defaults 0.3 and 0.7.
    """
    _check(weight_fp, weight_fn, smooth, exponent)
    both, predicted, wanted = regions(logits, target, mask)
    wrong = weight_fp * (predicted - both) + weight_fn * (wanted - both)
    # A power below 1 has an infinite slope at 0.
    losses = (1 - quotient(both + smooth, both + wrong + smooth)).clamp_min(1e-7 if exponent < 1 else 0.0)
    return by_sample(losses if exponent == 1 else losses.pow(exponent), len(logits))


def _check(weight_fp: float, weight_fn: float, smooth: float, exponent: float) -> None:
    for name, value in (("weight_fp", weight_fp), ("weight_fn", weight_fn), ("smooth", smooth)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} must be >= 0 and finite.")
    if not 0 < exponent < float("inf"):
        raise ValueError(f"exponent={exponent} must be > 0 and finite; 1 is the plain overlap.")


class TverskyLoss(Loss):
    r"""Trains a segmentation on the overlap of regions, with a price of its own for what is missed.

    The losses are those of :func:`tversky_loss`.

    Args:
        weight_fp: the price of what is predicted and not there.
        weight_fn: the price of what is there and not predicted.
        smooth: :math:`s`.
        exponent: :math:`q`.

    Raises:
        ValueError: a setting outside its range.

    When to use: for segmentation, if small regions are missed. The focal form, ``exponent=0.75``, works on the classes
    with the least overlap.
    Cost: that of a softmax.
    Interactions: as for :class:`DiceLoss`.

    Example:
        >>> TverskyLoss(exponent=0.75)
        TverskyLoss(weight_fp=0.3, weight_fn=0.7, smooth=1.0, exponent=0.75)
    """

    function = staticmethod(tversky_loss)
    family = "segmentation"
    problems = ("classes", "binary")
    unit: ClassVar[Literal["row", "sample"]] = "sample"

    def __init__(
        self, *, weight_fp: float = 0.3, weight_fn: float = 0.7, smooth: float = 1.0, exponent: float = 1.0
    ) -> None:
        super().__init__()
        _check(weight_fp, weight_fn, smooth, exponent)
        self.weight_fp = weight_fp
        self.weight_fn = weight_fn
        self.smooth = smooth
        self.exponent = exponent

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, C, ...) logits, (N, ...) classes or (N, C, ...) shares, and (N, ...) what counts -> (N,) losses."""
        return tversky_loss(
            logits,
            target,
            mask,
            weight_fp=self.weight_fp,
            weight_fn=self.weight_fn,
            smooth=self.smooth,
            exponent=self.exponent,
        )
