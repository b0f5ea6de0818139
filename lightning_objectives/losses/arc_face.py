"""ArcFace: a margin on the angle between a sample and its class."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._margins import head_cosines


def arc_face_loss(
    features: Tensor, head: nn.Module, target: Tensor, *, margin: float = 0.5, scale: float = 64.0
) -> Tensor:
    r"""Compute a cross entropy of scaled cosines, with a margin on the angle to the target's class.

    .. math::
        \ell = -\log \frac{e^{s \cos(\theta_y + m)}}{e^{s \cos(\theta_y + m)} + \sum_{j \ne y} e^{s \cos \theta_j}}

    with :math:`\theta_j` the angle between the features and row j of the head's weights. Where
    :math:`\theta_y + m > \pi`, the cosine is :math:`\cos \theta_y - m \sin m`.

    Args:
        features: (N, D), computed in float32 or better.
        head: the network's head, a linear layer. Its bias is not used.
        target: (N,) int classes.
        margin: :math:`0 \le m < \pi` in radians; 0 is the cross entropy of scaled cosines.
        scale: :math:`s > 0`.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, a head that is no linear layer, or a setting outside its range.

    Example:
        >>> head = nn.Linear(2, 2, bias=False)
        >>> _ = head.weight.data.copy_(torch.eye(2))
        >>> arc_face_loss(torch.tensor([[3.0, 0.0]]), head, torch.tensor([0]), scale=1.0).detach()  # cos 0.5 and 0
        tensor([0.3477])

    Paper: Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019, equation 3,
    https://arxiv.org/abs/1801.07698. Not checked at the source: the number of the equation.
    """
    _check(margin, scale)
    cosines = head_cosines(features, head, target)
    places = target.long().clamp_min(0)[:, None]
    own = cosines.gather(1, places)
    # The arc cosine has no slope at 1; the root keeps one.
    moved = own * math.cos(margin) - (1 - own.square()).clamp_min(1e-7).sqrt() * math.sin(margin)
    moved = torch.where(own > math.cos(math.pi - margin), moved, own - margin * math.sin(margin))
    return F.cross_entropy(scale * cosines.scatter(1, places, moved), target.long(), reduction="none")


def _check(margin: float, scale: float) -> None:
    if not 0 <= margin < math.pi:
        raise ValueError(f"margin={margin} must be in [0, pi): it is an angle in radians, such as 0.5.")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale={scale} must be > 0 and finite; the paper uses 64.")


class ArcFaceLoss(Loss):
    r"""Trains features whose angles tell classes apart, for retrieval and for faces that were never seen.

    The losses are those of :func:`arc_face_loss`.

    Args:
        margin: :math:`m` in radians.
        scale: :math:`s`.

    Raises:
        ValueError: a setting outside its range.

    When to use: if you use the features, by their cosines, and not the logits. The defaults are the paper's for faces;
    few classes need a lower ``scale``.
    Cost: that of the head once more.
    Interactions: the head's weights are trained by their directions alone, and its bias not at all, so the model's own
    logits are not those of the loss: predict by the cosines to the head's weights. Evaluate without the margin.

    Example:
        >>> ArcFaceLoss(margin=0.3)
        ArcFaceLoss(margin=0.3, scale=64.0)
    """

    function = staticmethod(arc_face_loss)
    family = "retrieval"
    problems = ("classes",)

    def __init__(self, *, margin: float = 0.5, scale: float = 64.0) -> None:
        super().__init__()
        _check(margin, scale)
        self.margin = margin
        self.scale = scale

    def forward(self, features: Tensor, head: nn.Module, target: Tensor) -> Tensor:
        """(N, D) features, the head and (N,) classes -> (N,) losses."""
        return arc_face_loss(features, head, target, margin=self.margin, scale=self.scale)
