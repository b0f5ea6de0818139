"""Spherical linear interpolation of two checkpoints."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.shapes import check_tensors

_PARALLEL = 0.9995
"""The cosine, or its opposite, above which two tensors are interpolated linearly."""


def slerp_merge(weights: Sequence[Tensor], *, share: float = 0.5) -> Tensor:
    r"""Compute a tensor on the arc between two tensors, whose norm is not shortened as that of their mean is.

    .. math::
        \theta = \frac{\sin((1 - t) \, \omega)}{\sin \omega} \, \theta_1 + \frac{\sin(t \, \omega)}{\sin \omega} \,
        \theta_2, \qquad \cos \omega = \frac{\langle \theta_1, \theta_2 \rangle}{|\theta_1| \, |\theta_2|}

    where each tensor is one vector. If :math:`|\cos \omega| > 0.9995`, or a norm is 0, it is
    :math:`(1 - t) \, \theta_1 + t \, \theta_2`.

    Args:
        weights: two tensors of one shape, in any float or complex type; complex numbers are pairs of weights.
        share: :math:`t` in [0, 1], the share of the second; 0 gives the first and 1 the second, to the bit.

    Returns:
        a new tensor of the same shape, in the wider type of the two, and in float32 or wider.

    Raises:
        ValueError: there are not two tensors, their shapes differ, or ``share`` is outside [0, 1].

    Example:
        >>> slerp_merge([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])  # half of a right angle
        tensor([0.7071, 0.7071])

    Paper: Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985, https://doi.org/10.1145/325334.325242.

    Differs from the paper: the vectors have any length. The two norms are not interpolated apart from the directions,
    and the cosine from which on the interpolation is linear is 0.9995: both as mergekit does it. Beside a tensor of
    norm 0, which has no direction, mergekit takes a right angle, and gives :math:`\sin(45°)` of the other at half the
    way; here it is the half.
    """
    _check(share)
    if len(weights) != 2:
        raise ValueError(
            f"weights hold {len(weights)} networks, but an arc lies between two: give two, or merge the result with "
            "the next one; WSM merges any number."
        )
    check_tensors([weights[0]] * 2, weights=weights)
    wide = torch.promote_types(torch.promote_types(weights[0].dtype, weights[1].dtype), torch.float32)
    first, second = (tensor.to(wide) for tensor in weights)
    if share in (0, 1):
        return (second if share else first).clone()
    cosine = _cosine(first, second)
    if not abs(cosine) <= _PARALLEL:  # so is NaN, of a norm that is 0 or not finite
        # Where both are equal, the sum could lose the sign of a zero, and an infinity.
        return torch.where(first == second, first, first.lerp(second, share))
    angle = math.acos(cosine)
    return first * (math.sin((1 - share) * angle) / math.sin(angle)) + second * (
        math.sin(share * angle) / math.sin(angle)
    )


def _check(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must be in [0, 1]: 0 is the first network, and 1 the second.")


def _cosine(first: Tensor, second: Tensor) -> float:
    a, b = (
        (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double().flatten() for tensor in (first, second)
    )
    return float(a.dot(b) / (a.norm() * b.norm()))


class SLERP(Merge):
    """Merges two networks along the arc between them, so that the weights keep their size.

    The merge of each tensor is that of :func:`slerp_merge`. ``merge_checkpoints``
    takes the files in the order in which they are listed.

    Args:
        share: the share of the second network, in [0, 1].

    Raises:
        ValueError: ``share`` is outside [0, 1]; in a merge, there are not two files.

    When to use: if two networks were fine-tuned from one base and lie so far apart that their mean is too small. On
    checkpoints of one training the angles are small and it is the mean: use :class:`WSM`.
    Cost: one pass over the files, with two copies of a tensor in float64.
    Interactions: it takes exactly two files, so ``MergeCheckpoints`` refuses it: run it after the training. Integers
    are those of the second file, whatever the share. Name floating buffers, such as BatchNorm's statistics,
    with ``buffers=``, and re-estimate BatchNorm's statistics after the merge.

    Example:
        >>> SLERP(share=0.25).tensor([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])])  # sin and cos of 22.5°
        tensor([1.8478, 0.7654])
    """

    function = staticmethod(slerp_merge)
    linear = False
    callback = ""  # a training may end with another number of snapshots
    files = 2
    example: ClassVar = {"share": 0.25}  # half of each would not depend on the order
    unkept_laws: ClassVar = {"the_order_of_the_files_means_nothing": "the share is that of the second file"}

    def __init__(self, *, share: float = 0.5) -> None:
        _check(share)
        self.share = share

    def tensor(
        self,
        weights: Sequence[Tensor],
        *,
        base: Tensor | None = None,
        importance: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        statistics: Any = None,
    ) -> Tensor:
        """The point on the arc between two tensors."""
        return slerp_merge(weights, share=self.share)
