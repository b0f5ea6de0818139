"""CosFace: a margin on the cosine between a sample and its class."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._margins import head_cosines


def cos_face_loss(
    features: Tensor, head: nn.Module, target: Tensor, *, margin: float = 0.35, scale: float = 64.0
) -> Tensor:
    r"""Compute a cross entropy of scaled cosines, with a margin on the cosine of the target's class.

    .. math::
        \ell = -\log \frac{e^{s (\cos \theta_y - m)}}{e^{s (\cos \theta_y - m)} + \sum_{j \ne y} e^{s \cos \theta_j}}

    with :math:`\theta_j` the angle between the features and row j of the head's weights.

    Args:
        features: (N, D), computed in float32 or better.
        head: the network's head, a linear layer. Its bias is not used.
        target: (N,) int classes.
        margin: :math:`m \ge 0`; 0 is the cross entropy of scaled cosines.
        scale: :math:`s > 0`.

    Returns:
        (N,) losses.

    Raises:
        ValueError: shapes that do not fit, a head that is no linear layer, or a setting outside its range.

    Example:
        >>> import torch
        >>> head = nn.Linear(2, 2, bias=False)
        >>> _ = head.weight.data.copy_(torch.eye(2))
        >>> cos_face_loss(torch.tensor([[3.0, 0.0]]), head, torch.tensor([0]), scale=1.0).detach()  # cos 0.65 and 0
        tensor([0.4201])

    Paper: Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018, equation 4,
    https://arxiv.org/abs/1801.09414. Not checked at the source: the number of the equation.
    """
    _check(margin, scale)
    cosines = head_cosines(features, head, target)
    places = target.long().clamp_min(0)[:, None]
    lowered = cosines.scatter(1, places, cosines.gather(1, places) - margin)
    return F.cross_entropy(scale * lowered, target.long(), reduction="none")


def _check(margin: float, scale: float) -> None:
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin={margin} must be >= 0 and finite; the paper uses 0.35.")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale={scale} must be > 0 and finite; the paper uses 64.")


class CosFaceLoss(Loss):
    r"""Trains features whose cosines tell classes apart, for retrieval and for faces that were never seen.

    The losses are those of :func:`cos_face_loss`.

    Args:
        margin: :math:`m`, of the cosine.
        scale: :math:`s`.

    Raises:
        ValueError: a setting outside its range.

    When to use: if you use the features, by their cosines, and not the logits. The margin takes the same off the
    cosine at every angle, where that of ``ArcFaceLoss`` depends on the angle. The margin is the paper's for faces;
    few classes need a lower ``scale``.
    Cost: that of the head once more.
    Interactions: the head's weights are trained by their directions alone, and its bias not at all, so the model's own
    logits are not those of the loss: predict by the cosines to the head's weights. Evaluate without the margin.

    Example:
        >>> CosFaceLoss(margin=0.4)
        CosFaceLoss(margin=0.4, scale=64.0)
    """

    function = staticmethod(cos_face_loss)
    family = "retrieval"
    problems = ("classes",)

    def __init__(self, *, margin: float = 0.35, scale: float = 64.0) -> None:
        super().__init__()
        _check(margin, scale)
        self.margin = margin
        self.scale = scale

    def forward(self, features: Tensor, head: nn.Module, target: Tensor) -> Tensor:
        """(N, D) features, the head and (N,) classes -> (N,) losses."""
        return cos_face_loss(features, head, target, margin=self.margin, scale=self.scale)
