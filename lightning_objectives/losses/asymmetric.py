"""Asymmetric loss for labels."""

from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._labels import asymmetric_terms
from lightning_objectives.losses._targets import wide
from lightning_objectives.shapes import check_shapes


def asymmetric_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    stop_gradient: bool = False,
) -> Tensor:
    r"""Compute a binary cross entropy for each label that counts easy negative labels less, and the easiest not at all.

    .. math::
        \ell = \sum_k -t_k (1 - p_k)^{\gamma_+} \log p_k - (1 - t_k) \, \tilde p_k^{\gamma_-} \log (1 - \tilde p_k),
        \qquad \tilde p_k = \max(p_k - m, 0)

    with :math:`p_k = \sigma(z_k)`.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        target: (N, C) float labels in [0, 1], or (N,) int classes, which are labels of one class.
        gamma_neg: :math:`\gamma_- \ge 0`.
        gamma_pos: :math:`\gamma_+ \ge 0`.
        clip: :math:`m \in [0, 1)`; negative labels with a smaller probability cost nothing.
        stop_gradient: whether no gradient flows through the two powers.

    Returns:
        (N,) losses, summed over the labels.

    Raises:
        ValueError: shapes that do not fit, or a setting outside its range.

    Example:
        >>> import torch
        >>> asymmetric_loss(torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor([0.4045])

    Paper: Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021, https://arxiv.org/abs/2009.14119.

    Differs from the authors' code: no probability is raised to 1e-8, which takes the gradient of the positive labels
    that are most wrong. Labels between 0 and 1 take the mean of the two terms. Of the code's two classes one stops the
    gradient of the powers and the other does not; see ``stop_gradient``.
    """
    _check(gamma_neg, gamma_pos, clip)
    check_shapes(logits=logits, target=target)
    powers = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos}
    return asymmetric_terms(wide(logits), target, **powers, clip=clip, stop_gradient=stop_gradient).sum(1)


def _check(gamma_neg: float, gamma_pos: float, clip: float) -> None:
    for name, gamma in (("gamma_neg", gamma_neg), ("gamma_pos", gamma_pos)):
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"{name}={gamma} must be >= 0 and finite; 0 leaves the cross entropy of these labels.")
    if not 0 <= clip < 1:
        raise ValueError(f"clip={clip} must be in [0, 1), because it is a probability; 0 for none.")


class AsymmetricLoss(Loss):
    r"""Balances the few labels that a sample has and the many that it lacks, also if some are missing in the data.

    The losses are those of :func:`asymmetric_loss`.

    Args:
        gamma_neg: :math:`\gamma_-`; the authors train with 4.
        gamma_pos: :math:`\gamma_+`; the authors train with 0, and their class has the default 1.
        clip: :math:`m`; the authors train with 0.05.
        stop_gradient: whether no gradient flows through the two powers. The authors train with True, timm with False;
            the gradients differ by a factor of 2 to 5 for hard negative labels.

    Raises:
        ValueError: a setting outside its range.

    When to use: several labels, if a sample has only a few of them. Keep ``gamma_neg`` above ``gamma_pos``.
    Cost: that of two binary cross entropies.
    Interactions: the losses are sums over the labels, so a criterion that took their mean had smaller ones: lower the
    learning rate, or clip. The criterion's ``weight`` and ``pos_weight`` are lost. Calibrate the probabilities
    afterwards.

    Example:
        >>> import torch
        >>> plain = AsymmetricLoss(gamma_neg=0.0, clip=0.0)  # binary cross entropy
        >>> plain(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # 2 log 2
        tensor([1.3863])
    """

    function = staticmethod(asymmetric_loss)
    family = "class imbalance"
    problems = ("classes", "binary", "labels")

    def __init__(
        self,
        *,
        gamma_neg: float = 4.0,
        gamma_pos: float = 0.0,
        clip: float = 0.05,
        stop_gradient: bool = False,
    ) -> None:
        super().__init__()
        _check(gamma_neg, gamma_pos, clip)
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.clip = clip
        self.stop_gradient = stop_gradient

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N, C) labels or (N,) classes -> (N,) losses."""
        gammas = {"gamma_neg": self.gamma_neg, "gamma_pos": self.gamma_pos}
        return asymmetric_loss(logits, target, **gammas, clip=self.clip, stop_gradient=self.stop_gradient)
