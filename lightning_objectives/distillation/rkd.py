"""Relational knowledge distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_shapes

_EQUAL = 1e-5
"""Samples that are nearer to each other than this share of the mean distance count as one point, without a direction:
the direction would be rounding, with a gradient that grows without limit."""


def rkd_loss(
    features: Tensor, teacher_features: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    r"""Compute how the distances and the angles between the samples of a batch differ from those of the teacher.

    .. math::
        \ell_i = \frac{\lambda_D}{N} \sum_j h\left(\frac{\|f_i - f_j\|}{\mu} - \frac{\|g_i - g_j\|}{\nu}\right)
        + \frac{\lambda_A}{N^2} \sum_{jk} h\left(\cos \angle f_j f_i f_k - \cos \angle g_j g_i g_k\right)

    with f the student's and g the teacher's features, :math:`\mu` and :math:`\nu` their mean distances between samples
    that differ, h the Huber function (:math:`x^2 / 2` up to 1, :math:`|x| - 1/2` beyond), and the angle at sample i.
    The two networks may have different numbers of features.

    Args:
        features: (N, D) the student's, in any float type; computed in float32 or better.
        teacher_features: (N, D') the teacher's; no gradient flows to them.
        distance_weight: :math:`\lambda_D \ge 0`; at 0 no distances are compared.
        angle_weight: :math:`\lambda_A \ge 0`; at 0 no angles are compared.

    Returns:
        (N,) distances >= 0.

    Raises:
        ValueError: shapes that do not fit, or a negative weight.

    Example:
        >>> student = torch.tensor([[0.0], [1.0], [2.0]])  # distances 1, 1, 2 with the mean 4/3
        >>> teacher = torch.tensor([[0.0], [1.0], [0.5]])  # distances 1, 1/2, 1/2 with the mean 2/3
        >>> rkd_loss(student, teacher, distance_weight=1.0, angle_weight=0.0)  # h(-3/4) + h(3/4) = 0.5625 in row 0
        tensor([0.1875, 0.0938, 0.0938])

    Paper: Park et al., Relational Knowledge Distillation, CVPR 2019, https://arxiv.org/abs/1904.05068.

    Differs from the paper: samples that the network maps to one point have no angle and no gradient there; the released
    code gives them a gradient in the order of 1e11. The value for a batch is that of the released code, the mean over
    all pairs and all triples, also of a sample with itself.
    """
    _check(distance_weight, angle_weight)
    check_shapes(features=features, teacher_features=teacher_features)
    exact = torch.promote_types(features.dtype, torch.float32)
    student, ours = _scaled(features.to(exact))
    teacher, theirs = _scaled(teacher_features.detach().to(exact))
    distances = student.new_zeros(len(student))
    if distance_weight:
        distances = distances + distance_weight * F.smooth_l1_loss(ours, theirs, reduction="none").mean(1)
    if angle_weight:
        cosines, wanted = _cosines(student, ours), _cosines(teacher, theirs)
        distances = distances + angle_weight * F.smooth_l1_loss(cosines, wanted, reduction="none").mean((1, 2))
    return distances


def _scaled(features: Tensor) -> tuple[Tensor, Tensor]:
    """The features, and their (N, N) distances, in units of the mean distance between samples that differ."""
    # Distances by a product of matrices are wrong for near samples, and have no gradient at 0.
    lengths = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    mean = lengths.sum() / (lengths > 0).sum().clamp_min(1)
    mean = torch.where(mean > 0, mean, 1.0)
    return features / mean, lengths / mean


def _cosines(features: Tensor, lengths: Tensor) -> Tensor:
    """(N, N, N) the cosines of the angles at the first sample between the second and the third."""
    apart = lengths > _EQUAL
    edges = features[None] - features[:, None]
    directions = edges * torch.where(apart, 1 / torch.where(apart, lengths, 1.0), 0.0)[..., None]
    with torch.autocast(features.device.type, enabled=False):
        return directions @ directions.mT


def _check(distance_weight: float, angle_weight: float) -> None:
    for name, value in (("distance_weight", distance_weight), ("angle_weight", angle_weight)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} must be >= 0 and finite.")


class RKD(Distillation):
    r"""Trains a student to place the samples of a batch as its teacher does: with the same distances and angles.

    The distances are those of :func:`rkd_loss`. Both networks' features are the inputs of their heads, and may have
    different sizes.

    Args:
        distance_weight: :math:`\lambda_D \ge 0`, the weight of the distances between two samples.
        angle_weight: :math:`\lambda_A \ge 0`, the weight of the angles between three samples.

    Raises:
        ValueError: a negative weight.

    When to use: if teacher and student have features of different sizes, or no logits in common, as in metric learning
    and regression. The defaults are what most comparisons of classifiers use; the authors use 1 and 2 for metric
    learning.
    Cost: the teacher's forward pass; time and memory of N · N · D for the differences and N · N · N for the angles: 0.5
    GB for each network at N = 512 in float32. Without the angles it is N · N.
    Interactions: a rotation, a shift and a scale of the features change nothing. Only the samples of one batch are
    compared: one sample teaches nothing, two have no distance to compare. Gradient accumulation does not join the
    batches. ``cache=`` of the callback keeps logits alone, so it does not work with this method.

    Example:
        >>> RKD()(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0, 4.0], [0.0, 2.0], [0.0, 0.0]]))
        tensor([0., 0., 0.])
    """

    function = staticmethod(rkd_loss)
    coupled = "it compares the samples of the batch with each other"
    by_process = "each process compares the samples of its own batch"

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        _check(distance_weight, angle_weight)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, features: Tensor, teacher_features: Tensor) -> Tensor:
        """(N, D) and (N, D') features -> (N,) distances."""
        return rkd_loss(
            features, teacher_features, distance_weight=self.distance_weight, angle_weight=self.angle_weight
        )
