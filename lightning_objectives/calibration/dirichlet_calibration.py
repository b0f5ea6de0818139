"""Dirichlet calibration."""

from torch import Tensor

from lightning_objectives.calibration.matrix_scaling import MatrixScaling


class DirichletCalibration(MatrixScaling):
    r"""Corrects probabilities as if those of each class followed a Dirichlet distribution: any classifier, few classes.

    It is :class:`MatrixScaling` on the logarithms of the probabilities:

    .. math::
        \operatorname{softmax}(W \log p + b), \qquad p = \operatorname{softmax}(z)

    Matrix and bias are fitted by :func:`best_matrix_and_bias`, with the log-probabilities as its logits. Before the fit
    the probabilities are those of softmax.

    Args:
        off_diagonal: :math:`\lambda \ge 0`, the penalty of the entries beside the diagonal; the paper chooses it by
            cross-validation.
        intercept: :math:`\mu \ge 0`, the penalty of the bias; chosen in the same way.
        penalty: pulls towards the plain softmax, so that a class without a sample keeps a probability above 0.

    Raises:
        ValueError: settings outside of their range; logits of other classes than those of the fit.

    When to use: as ``MatrixScaling``, and for classifiers that give probabilities, whose logarithms you pass as logits.
    What is added to all logits of a row changes nothing here, while it does there. Set both penalties with more than a
    few classes, and try some values between 1e-3 and 10 on other data.
    Cost: that of ``MatrixScaling``.
    Interactions: the top class may change, and with it the accuracy. Fit it on the weights that you use.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> calibration = DirichletCalibration(off_diagonal=0.01, intercept=0.01)
        >>> calibration.fit(logits, torch.tensor([0, 0, 1, 1]))
        >>> calibration(logits[:1])  # two of three
        tensor([[0.6667, 0.3333]])

    Paper: Kull et al., Beyond Temperature Scaling: Obtaining Well-Calibrated Multiclass Probabilities with Dirichlet
    Calibration, NeurIPS 2019, https://arxiv.org/abs/1910.12656.

    Differs from the paper: the small penalty of the distance from :math:`W = I`, without which separated classes have
    no best matrix. The paper's code takes plain sums for the two others: multiply its :math:`\lambda` by
    :math:`C (C - 1)` and its :math:`\mu` by :math:`C`. It also clips probabilities at 2e-16, which logits do not need.
    Not checked at the source: that the paper's penalties are the means that are taken here.
    """

    @staticmethod
    def inputs(logits: Tensor) -> Tensor:
        """What the linear layer gets: the logarithms of the probabilities."""
        return logits.log_softmax(1)
