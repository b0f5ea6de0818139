"""Lovász loss: the intersection over union of predicted and true regions."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._regions import WHOLE_BATCH, check_places, shares_of
from lightning_objectives.losses._targets import wide


def lovasz_loss(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    absent: bool = False,
    whole_batch: bool = False,
) -> Tensor:
    r"""Compute a convex extension of one minus the intersection over union of each image, in the mean over the classes.

    For each class the errors :math:`m_i` of the positions are sorted, the largest first, and

    .. math::
        \ell_c = \sum_i m_{(i)} \left( J_i - J_{i - 1} \right), \qquad
        J_i = 1 - \frac{|F \setminus S_i|}{|F \cup S_i|}

    with F the positions of the class and :math:`S_i` the first i of the sorted ones. With two or more classes the error
    is :math:`|1[y_i = c] - p_{ic}|` for a softmax p; with one logit z it is the hinge
    :math:`\max(0, 1 - z (2 y_i - 1))`.

    Args:
        logits: (N, C, ...); C of 1 is a binary problem. Computed in float32 or better.
        target: (N, ...) int classes, or (N, C, ...) float shares: each position belongs to a class's region by
            that part. With one logit they must be 0 or 1.
        mask: (N, ...) bool, the positions that count; None for all.
        absent: also count classes that an image does not have; their loss is the largest probability they get.
        whole_batch: take the batch as one image, and give each of its images that loss.

    Returns:
        (N,) losses; 0 for an image in which no position counts.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> p = torch.tensor([[[0.9, 0.6, 0.2], [0.1, 0.4, 0.8]]])  # two classes at three positions
        >>> lovasz_loss(p.log(), torch.tensor([[0, 0, 1]]))  # errors (0.1, 0.4, 0.2) for both classes
        tensor([0.2833])

    Paper: Berman, Rannen Triki and Blaschko, The Lovász-Softmax Loss, CVPR 2018, equations 8 to 12,
    https://arxiv.org/abs/1705.08790. The equations' numbers were not checked at the source.

    Differs from the authors' code: by default each image by itself, for the softmax too. The paper has no shares of
    classes. kornia counts absent classes.
    """
    check_places(logits, target, mask)
    logits, inside = wide(logits), shares_of(logits, target, mask)
    several = logits.shape[1] > 1
    errors = (inside - logits.softmax(1)).abs() if several else (1 - logits * (2 * inside - 1)).relu()
    if mask is not None:  # Errors of 0 outside of the region come last, and add nothing.
        errors, inside = (torch.where(mask[:, None], value, 0.0) for value in (errors, inside))
    errors, inside = (value[..., None].flatten(2).movedim(1, 0) for value in (errors, inside))  # (C, N, places)
    if whole_batch:
        errors, inside = (value.flatten(1)[:, None] for value in (errors, inside))
    ranked, order = errors.sort(2, descending=True)
    losses = (ranked * _steps(inside.gather(2, order))).sum(2)
    counts = torch.ones_like(losses) if absent or not several else (inside.sum(2) > 0).to(losses.dtype)
    of_images = (losses * counts).sum(0) / counts.sum(0).clamp_min(1)
    return of_images.expand(len(logits))


def _steps(inside: Tensor) -> Tensor:
    """How much of the union is lost with each further position, (..., places), without gradient."""
    inside = inside.detach()
    total = inside.sum(-1, keepdim=True)
    lost = 1 - (total - inside.cumsum(-1)) / (total + (1 - inside).cumsum(-1)).clamp_min(1)
    return torch.diff(lost, dim=-1, prepend=torch.zeros_like(lost[..., :1]))


class LovaszSoftmaxLoss(Loss):
    """Trains a segmentation on the intersection over union of regions, by which it is judged.

    The losses are those of :func:`lovasz_loss`.

    Args:
        absent: also count classes that an image does not have.
        whole_batch: the regions of the whole batch, as in the authors' code; by default those of each image.

    When to use: for segmentation that is judged by the intersection over union, to fine-tune after or beside cross
    entropy; alone from scratch it learns slowly.
    Cost: a sort of the positions for each class.
    Interactions: ignored positions do not count. Two classes by one logit use the hinge, whose targets must be 0 or 1.
    With ``whole_batch`` each process takes the regions of its own batch.

    Example:
        >>> LovaszSoftmaxLoss(whole_batch=True)
        LovaszSoftmaxLoss(absent=False, whole_batch=True)
    """

    function = staticmethod(lovasz_loss)
    family = "segmentation"
    problems = ("classes", "binary")
    unit: ClassVar[Literal["row", "sample"]] = "sample"

    def __init__(self, *, absent: bool = False, whole_batch: bool = False) -> None:
        super().__init__()
        self.absent = absent
        self.whole_batch = whole_batch
        self.coupled = WHOLE_BATCH if whole_batch else ""

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, C, ...) logits, (N, ...) classes and (N, ...) what counts -> (N,) losses."""
        return lovasz_loss(logits, target, mask, absent=self.absent, whole_batch=self.whole_batch)
