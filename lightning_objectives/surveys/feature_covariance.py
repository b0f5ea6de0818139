"""Mean and covariance of the features."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_objectives.kinds import Survey
from lightning_objectives.shapes import check_shapes


def feature_moments(features: Tensor) -> dict[str, Tensor]:
    r"""Add up the features and their products: the sums from which mean and covariance are computed.

    .. math::
        s = \sum_n h_n, \qquad P = \sum_n h_n h_n^\top

    with :math:`h` the features.

    Args:
        features: (N, D), in any float type.

    Returns:
        ``sums``, (D,), and ``products``, (D, D), without gradient, in float64, or on devices without it in float32.

    Raises:
        ValueError: features that are no table.

    Example:
        >>> import torch
        >>> moments = feature_moments(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> moments["sums"]
        tensor([4., 2.], dtype=torch.float64)
        >>> moments["products"]
        tensor([[10.,  2.],
                [ 2.,  4.]], dtype=torch.float64)
    """
    check_shapes(features=features)
    features = features.detach().to(torch.float32 if features.device.type == "mps" else torch.float64)
    return {"sums": features.sum(0), "products": features.T @ features}


class FeatureCovariance(Survey):
    r"""Measures the mean and the covariance of the features, over all classes together.

    The sums over the samples, s and P, are those of :func:`feature_moments`. The result is ``mean``, (D,), and
    ``covariance``, (D, D), symmetric:

    .. math::
        \mu = \frac{s}{N}, \qquad \Sigma = \frac{P - s s^\top / N}{N - c}

    With no more than c samples there is no covariance: it is NaN, and without any sample the mean too.

    Rounding: the difference loses digits if the mean is large against the spread. The error of a variance is about
    :math:`\epsilon \, \mu^2`, and at most N times that, with :math:`\epsilon = 2.2 \cdot 10^{-16}` in float64. So a
    spread of 1/1000 of the mean has a variance that is right to nine digits. A variance of at most
    :math:`N \epsilon` times the mean square cannot be told from 0; the row and the column of such a feature are 0, as
    those of a constant feature are. At a million samples these are spreads below 1/67000 of the mean. On devices
    without float64 the sums of each batch have the errors of float32, 500 million times as large. The limit does not
    take them into account.

    Args:
        correction: c, 0 or 1. With 0 the divisor is N, as in the papers: the most likely covariance. With 1 it is
            N - 1, as in ``torch.cov`` by default: right on average over data sets.

    Raises:
        ValueError: ``correction`` is neither 0 nor 1.

    When to use: after a training, to tell other inputs from usual ones by their Mahalanobis distance to the mean, to
    whiten the features, or to see in how many directions they vary.
    Cost: one forward pass over the data, D² numbers in float64, and N · D² multiplications in float64.
    Interactions: the features are the inputs of the head, in evaluation mode. With fewer samples than features, or
    constant features, the covariance has no inverse: use ``torch.linalg.pinv``, or add a small number to its diagonal.

    Example:
        >>> import torch
        >>> survey = FeatureCovariance()
        >>> result = survey.result(survey(torch.tensor([[1.0, 2.0], [3.0, 0.0]])), rows=2)
        >>> result["mean"]
        tensor([2., 1.], dtype=torch.float64)
        >>> result["covariance"]
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)

    Paper: Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, 2021, section 2,
    https://arxiv.org/abs/2106.09022, whose background distribution has this mean and this covariance. Used beside that
    of Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks,
    NeurIPS 2018, https://arxiv.org/abs/1807.03888.

    Differs from the papers: the covariance of Lee et al. is around the mean of each sample's own class, and so holds
    the spread within the classes alone; this one also holds the spread of the classes' means, and needs no targets. For
    theirs, take off the covariance of the means of :class:`ClassMeans`, each weighted by its count.
    """

    function = staticmethod(feature_moments)

    def __init__(self, *, correction: int = 0) -> None:
        super().__init__()
        if correction not in (0, 1):
            raise ValueError(f"correction={correction} must be 0 or 1: the covariance is divided by N - correction.")
        self.correction = correction

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """(N, D) features -> (D,) ``sums``, (D, D) ``products``."""
        return feature_moments(features)

    def result(self, sums: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The mean, and the covariance, whose rows and columns are 0 where the spread is lost in rounding."""
        mean = sums["sums"] / rows
        scatter = sums["products"] - sums["sums"].outer(mean)
        rounding = rows * torch.finfo(scatter.dtype).eps * sums["products"].diagonal()
        constant = scatter.diagonal() <= rounding
        scatter = scatter.masked_fill(constant[:, None] | constant, 0.0)
        return {"mean": mean, "covariance": (scatter + scatter.T) / (2 * (rows - self.correction))}
