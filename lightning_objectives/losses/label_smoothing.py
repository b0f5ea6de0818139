"""Label smoothing."""

from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import expected, log_probabilities


def label_smoothing_loss(logits: Tensor, target: Tensor, *, smoothing: float = 0.1) -> Tensor:
    r"""Compute the cross entropy with a target that gives a small share to every class.

    .. math::
        \ell = (1 - \varepsilon) \, (-\log p_y) + \frac{\varepsilon}{C} \sum_k -\log p_k

    The target's class is one of the :math:`C` classes of the sum, so it has the share
    :math:`1 - \varepsilon + \varepsilon / C`.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities.
        smoothing: :math:`\varepsilon \in [0, 1]`; 0 is cross entropy, and at 1 the target no longer counts.

    Returns:
        (N,) losses. The least is the entropy of the smoothed target, not 0. A logit of -inf (a masked class) gives an
        infinite loss, because that class has a share too.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a ``smoothing`` outside [0, 1].

    Example:
        >>> import torch
        >>> label_smoothing_loss(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([0]))  # 0.4170 without
        tensor([0.5137])

    Paper: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, section 7,
    https://arxiv.org/abs/1512.00567.

    Differs from other code: some give the other classes :math:`\varepsilon / (C - 1)` each and the target's class
    :math:`1 - \varepsilon`. That is this loss at :math:`\varepsilon C / (C - 1)`.
    """
    _check(smoothing)
    log_p = log_probabilities(logits, target)
    losses = (1 - smoothing) * -expected(log_p, target)
    return losses - smoothing * log_p.mean(1) if smoothing else losses


def _check(smoothing: float) -> None:
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing={smoothing} must be in [0, 1]; 0 is cross entropy.")


class LabelSmoothingLoss(Loss):
    r"""Keeps the network from becoming too sure of the training labels.

    The losses are those of :func:`label_smoothing_loss`.

    Args:
        smoothing: :math:`\varepsilon`; the paper uses 0.1 for ImageNet.

    Raises:
        ValueError: a ``smoothing`` outside [0, 1].

    When to use: with many samples for each class, if the network becomes overconfident. Values of 0.05 to 0.2 are
    common.
    Cost: that of cross entropy and one mean over the classes.
    Interactions: do not smooth twice: leave ``label_smoothing=`` of the criterion and of mixup at 0. A teacher that was
    trained with it teaches less. Class weights of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> LabelSmoothingLoss(smoothing=0.0)(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """

    function = staticmethod(label_smoothing_loss)
    family = "overconfidence"
    problems = ("classes",)

    def __init__(self, *, smoothing: float = 0.1) -> None:
        super().__init__()
        _check(smoothing)
        self.smoothing = smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return label_smoothing_loss(logits, target, smoothing=self.smoothing)
