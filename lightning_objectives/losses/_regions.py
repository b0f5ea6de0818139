"""Probabilities and targets of the positions of images, for losses on regions."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.losses._targets import wide
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {
    "logits": forms("(N, C, ...) float"),
    "target": forms("(N, ...) int or (N, C, ...) float"),
    "mask": forms("(N, ...) bool"),
}
WHOLE_BATCH = "the regions are those of the whole batch"
"""Why the samples of a batch are coupled, if they are."""


class Regions(NamedTuple):
    """Sums over the positions that count, (N, C) each, or (1, C) over the whole batch."""

    both: Tensor
    """What predictions and targets share: the sum of the smaller of the two, which is their product for a target of 0
    and 1."""
    predicted: Tensor
    wanted: Tensor


def check_places(logits: Tensor, target: Tensor, mask: Tensor | None) -> None:
    """Refuse a target or a mask of other positions than the logits.

    Raises:
        ValueError: with the shapes.
    """
    given = {"logits": logits, "target": target} | ({} if mask is None else {"mask": mask})
    check_shapes(_FORMS, **given)
    places = logits.shape[2:]
    for name, tensor in given.items():
        own = tensor.shape[2:] if tensor.is_floating_point() else tensor.shape[1:]
        if own != places:
            raise ValueError(
                f"{name} of the shape {tuple(tensor.shape)} does not fit logits of the shape {tuple(logits.shape)}: "
                "both must have the same positions. Pass (N, ...) classes, or (N, C, ...) shares."
            )


def shares_of(logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """(N, C, ...) the share of each class in the target at each position, in float32 or better."""
    dtype = wide(logits).dtype
    if target.is_floating_point():
        return target.to(dtype)
    if logits.shape[1] == 1:
        return target[:, None].to(dtype)
    inside = target.long() if mask is None else torch.where(mask, target.long(), 0)
    return F.one_hot(inside, logits.shape[1]).movedim(-1, 1).to(dtype)


def regions(
    logits: Tensor, target: Tensor, mask: Tensor | None, *, squared: bool = False, whole_batch: bool = False
) -> Regions:
    """The overlap of predictions and targets by sample and class.

    The predictions are a softmax over two or more classes, or the sigmoid of one.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_places(logits, target, mask)
    logits, t = wide(logits), shares_of(logits, target, mask)
    p = logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()
    if mask is not None:  # A position that is ignored leaves all three sums; its logit may be NaN.
        p, t = (torch.where(mask[:, None], value, 0.0) for value in (p, t))
    both = (p + t - (p - t).abs()) / 2
    if squared:
        p, t, both = p.square(), t.square(), (p.square() + t.square() - (p - t).square()) / 2
    sums = [value.flatten(2).sum(2) if value.dim() > 2 else value for value in (both, p, t)]
    return Regions(*(value.sum(0, keepdim=True) if whole_batch else value for value in sums))


def by_sample(losses: Tensor, count: int) -> Tensor:
    """(N,) the mean over the classes of (N, C) losses; that of a whole batch for each of its samples."""
    return losses.mean(1).expand(count)


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A ratio that is 1 where there is nothing to compare, so that nothing is lost there."""
    empty = denominator == 0
    return torch.where(empty, 1.0, numerator / torch.where(empty, 1.0, denominator))
