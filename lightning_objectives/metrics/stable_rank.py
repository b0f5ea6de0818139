"""The stable rank of features, and of weights."""

import torch
from torch import Tensor

from lightning_objectives.metrics._products import FeatureProducts


def stable_rank(features: Tensor) -> Tensor:
    r"""Compute over how many directions a matrix spreads its size, as a real number that small changes do not move.

    .. math::
        \lVert A \rVert_F^2 / \lVert A \rVert_2^2 = \sum_k \sigma_k^2 / \sigma_1^2

    with the singular values :math:`\sigma_1 \ge \sigma_2 \ge \dots` of the matrix, which is not centred.

    Args:
        features: (N, D), or a weight (out, in, ...), whose dimensions after the first are joined; in any float
            type, computed in float64.

    Returns:
        () float32 between 1 and the rank. NaN without rows, and for a matrix that is all 0 or not finite.

    Raises:
        ValueError: fewer than two dimensions.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))  # (4 + 1 + 1) / 4
        tensor(1.5000)

    Paper: the rank by which Wang et al., Cuttlefish: Low-Rank Model Training without All the Tuning, MLSys 2023,
    https://arxiv.org/abs/2305.02538, watch the weights of each layer, reshaped as here in their code
    (https://github.com/hwang595/Cuttlefish).
    """
    if features.dim() < 2:
        raise ValueError(f"features of the shape {tuple(features.shape)} must have two dimensions or more.")
    a = features.detach().flatten(1).cpu().double()
    return _ratio(torch.linalg.svdvals(a) if a.isfinite().all() else a.new_full((1,), torch.nan)).to(features.device)


def _ratio(singular_values: Tensor) -> Tensor:
    if not len(singular_values):
        return torch.full((), torch.nan)
    # The greatest is taken out first, so that its square can neither become 0 nor infinite.
    return (singular_values / singular_values.max()).square().sum().float()


class StableRank(FeatureProducts):
    """Measures how many directions carry the features of the head's input, without the directions that hardly count.

    The value is that of :func:`stable_rank` over all rows of all batches and ranks. The metric adds up the products of
    the features, a D x D matrix in float64, and keeps no row. For the weights of layers call the function itself.

    Raises:
        ValueError: in ``update``, features that are not (N, D), or have another D than those before.

    Shapes of ``update``: features (N, D). ``LogMetrics`` passes the input of the network's head.

    When to use: beside ``RankMe``, which counts weak directions too: a stable rank near 1 says that one direction,
    often the mean, dominates the features.
    Cost: one product of D x N x D numbers in float64 for each batch, and 8 D² bytes: 32 MB for 2048 features. The
    eigenvalues are computed once, at the end, in the memory of the CPU.
    Interactions: the features are not centred, so those after a ReLU have a lower value.

    Example:
        >>> metric = StableRank()
        >>> metric.update(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> metric.update(torch.tensor([[0.0, 0.0, 1.0]]))
        >>> metric.compute()
        tensor(1.5000)

    Paper: see :func:`stable_rank`.

    Differs from the paper: of features in place of weights.
    """

    function = staticmethod(stable_rank)
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 1.0

    def compute(self) -> Tensor:
        """The stable rank of all rows, () float32."""
        return _ratio(self._singular_values()).to(self.device)
