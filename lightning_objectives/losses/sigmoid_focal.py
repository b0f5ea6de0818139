"""Focal loss on sigmoids."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import shares, wide
from lightning_objectives.shapes import check_shapes


def sigmoid_focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | None = 0.25) -> Tensor:
    r"""Compute a binary cross entropy for each class that counts less where the network is already right.

    .. math::
        \ell = \sum_k -t_k \, \alpha (1 - p_k)^\gamma \log p_k - (1 - t_k) (1 - \alpha) \, p_k^\gamma \log (1 - p_k)

    with :math:`p_k = \sigma(z_k)`.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        target: (N, C) float labels in [0, 1], or (N,) int classes, which are labels of one class.
        gamma: :math:`\gamma \ge 0`; 0 is the (weighted) binary cross entropy.
        alpha: the weight of the positive labels, in [0, 1]; negative labels have :math:`1 - \alpha`. None for a weight
            of 1 for both.

    Returns:
        (N,) losses, summed over the classes.

    Raises:
        ValueError: shapes that do not fit, or a setting outside its range.

    Example:
        >>> import torch
        >>> sigmoid_focal_loss(torch.tensor([[0.3, -1.2]]), torch.tensor([[1.0, 0.0]]))  # 0.0251 + 0.0106
        tensor([0.0357])

    Paper: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5, https://arxiv.org/abs/1708.02002.

    Differs from the paper: labels between 0 and 1 take the mean of the two terms. Libraries differ here; torchvision
    has another value for them.
    """
    _check(gamma, alpha)
    check_shapes(logits=logits, target=target)
    logits = wide(logits)
    target = shares(logits, target)
    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    of_positive = positive * (gamma * log_not_p).exp() * -log_p
    of_negative = negative * (gamma * log_p).exp() * -log_not_p
    # 0 * inf is NaN, so a term without a share must not count, even if its logit is infinite.
    positive_part = torch.where(target == 0, 0.0, target * of_positive)
    negative_part = torch.where(target == 1, 0.0, (1 - target) * of_negative)
    return (positive_part + negative_part).sum(1)


def _check(gamma: float, alpha: float | None) -> None:
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma={gamma} must be >= 0 and finite; 0 is binary cross entropy.")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be in [0, 1], or None for a weight of 1 for both kinds of label.")


class SigmoidFocalLoss(Loss):
    r"""Down-weights easy labels, so that the many absent classes do not drown the few present ones.

    The losses are those of :func:`sigmoid_focal_loss`.

    Args:
        gamma: :math:`\gamma \ge 0`; the paper's best is 2.
        alpha: the weight of the positive labels; the paper's best is 0.25 at ``gamma=2``, because the factor with
            ``gamma`` already lowers the many negative labels. None for no weight.

    Raises:
        ValueError: a setting outside its range.

    When to use: one label or several, if few are present in each sample, as in dense detection.
    Cost: that of binary cross entropy.
    Interactions: the losses are sums over the classes, so a criterion that took their mean had smaller ones: lower the
    learning rate, or clip. The paper divides by the number of positives in the batch; here the mean is that of the
    replaced criterion. Its ``weight`` and ``pos_weight`` are lost. Calibrate the probabilities afterwards.

    Example:
        >>> import torch
        >>> SigmoidFocalLoss(gamma=0.0, alpha=None)(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # 2 log 2
        tensor([1.3863])
    """

    function = staticmethod(sigmoid_focal_loss)
    family = "easy samples"
    problems = ("classes", "binary", "labels")

    def __init__(self, *, gamma: float = 2.0, alpha: float | None = 0.25) -> None:
        super().__init__()
        _check(gamma, alpha)
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N, C) labels or (N,) classes -> (N,) losses."""
        return sigmoid_focal_loss(logits, target, gamma=self.gamma, alpha=self.alpha)
