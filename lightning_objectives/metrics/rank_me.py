"""RankMe, the effective rank of features."""

import torch
from torch import Tensor

from lightning_objectives.metrics._products import FeatureProducts
from lightning_objectives.shapes import check_shapes

_EPSILON = 1e-7
"""What the paper adds to each share, for float32 features."""


def rank_me(features: Tensor) -> Tensor:
    r"""Compute the effective rank of features: how many directions they spread over, as a real number.

    .. math::
        \operatorname{RankMe}(Z) = \exp\left(-\sum_{k=1}^{\min(N, D)} p_k \log p_k\right), \quad
        p_k = \frac{\sigma_k(Z)}{\lVert \sigma(Z) \rVert_1} + 10^{-7}

    with the singular values :math:`\sigma_k` of the features, which are not centred.

    Args:
        features: (N, D), in any float type; computed in float64.

    Returns:
        () float32 between 1 and :math:`\min(N, D)`, up to the effect of :math:`10^{-7}`. NaN without rows, and for
        features that are all 0 or not finite.

    Raises:
        ValueError: features that are not (N, D).

    Example:
        >>> rank_me(2 * torch.eye(3)), rank_me(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
        (tensor(3.), tensor(1.0000))

    Paper: Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by
    Their Rank, ICML 2023, equation 1, https://arxiv.org/abs/2210.02885.
    """
    check_shapes(features=features)
    z = features.detach().cpu().double()
    return _effective_rank(torch.linalg.svdvals(z) if z.isfinite().all() else z.new_full((1,), torch.nan))


def _effective_rank(singular_values: Tensor) -> Tensor:
    p = singular_values / singular_values.sum() + _EPSILON
    rank = (-(p * p.log()).sum()).exp().float()
    return rank if len(p) else rank.new_full((), torch.nan)


class RankMe(FeatureProducts):
    """Measures collapse without labels: over how many directions the features of the head's input spread.

    The value is that of :func:`rank_me` over all rows of all batches and ranks. The metric adds up the products of the
    features, a D x D matrix in float64, whose eigenvalues are the squares of the singular values. It keeps no row.

    Raises:
        ValueError: in ``update``, features that are not (N, D), or have another D than those before.

    Shapes of ``update``: features (N, D). ``LogMetrics`` passes the input of the network's head.

    When to use: to compare self-supervised or fine-tuned networks of one architecture before there are labels, and to
    see a collapse as it begins. Use some times more rows than D: the paper takes 25,600.
    Cost: one product of D x N x D numbers in float64 for each batch, and 8 D² bytes: 32 MB for 2048 features. The
    eigenvalues are computed once, at the end, in the memory of the CPU. Singular values below 1e-8 of the greatest are
    noise, which changes the rank less than the paper's :math:`10^{-7}` does.
    Interactions: a larger value is no better by itself between architectures, or between features before and after a
    ReLU.

    Example:
        >>> metric = RankMe()
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        >>> metric.update(torch.tensor([[1.0, 1.0]]))
        >>> metric.compute()
        tensor(1.9236)

    Paper: Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by
    Their Rank, ICML 2023, https://arxiv.org/abs/2210.02885.
    """

    function = staticmethod(rank_me)
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 1.0

    def compute(self) -> Tensor:
        """The effective rank of all rows, () float32."""
        return _effective_rank(self._singular_values()).to(self.device)
