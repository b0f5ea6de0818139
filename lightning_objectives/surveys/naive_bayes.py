"""A naive Bayes classifier on the features, as the weights of a linear head."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_objectives.kinds import Survey
from lightning_objectives.shapes import check_shapes, forms
from lightning_objectives.surveys.class_means import class_sums

_FORMS = {"sums": forms("(C, D) float"), "counts": forms("(C,) float"), "squares": forms("(D,) float")}


def naive_bayes_sums(features: Tensor, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Add up what a naive Bayes classifier needs to know of the features of each class.

    Args:
        features: (N, D), in any float type.
        logits: (N, C), which say how many classes there are.
        target: (N,) int classes or (N, C) float class probabilities.

    Returns:
        ``sums``, (C, D), and ``counts``, (C,), as :func:`class_sums` gives them, and ``squares``, (D,), the sum of the
        squared features; without gradient, in float64, or on devices without it in float32.

    Raises:
        ValueError: shapes that do not fit, or fewer than two classes.

    Example:
        >>> naive_bayes_sums(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 2), torch.tensor([1, 0]))["squares"]
        tensor([10.], dtype=torch.float64)
    """
    sums = class_sums(features, logits, target)
    wide = features.detach().to(sums["sums"].dtype)
    # A row counts as often as its class probabilities say, which is once.
    shares = target.detach().to(wide.dtype).sum(1) if target.is_floating_point() else wide.new_ones(len(wide))
    return {**sums, "squares": shares @ wide.square()}


def naive_bayes_weights(sums: Tensor, counts: Tensor, squares: Tensor, *, eps: float = 1e-9) -> tuple[Tensor, Tensor]:
    r"""Compute the linear head whose logits are the log-densities of the classes, up to a number that they share.

    .. math::
        w_{kj} = \frac{\mu_{kj}}{\sigma_j^2}, \qquad b_k = \log \pi_k - \sum_j \frac{\mu_{kj}^2}{2 \sigma_j^2}, \qquad
        \sigma_j^2 = \sum_k \pi_k \operatorname{Var}(h_j \mid k) + \epsilon

    with the means :math:`\mu`, the shares :math:`\pi` of the classes, and one variance of each feature for all classes.

    Args:
        sums: (C, D) of the features of each class.
        counts: (C,) how many samples each class has.
        squares: (D,) the sum of the squared features of all samples.
        eps: :math:`\epsilon > 0`, which is added to each variance.

    Returns:
        the weight (C, D) and the bias (C,). A class without samples has the weight 0 and the bias -inf, so that it is
        never predicted.

    Raises:
        ValueError: shapes that do not fit, or an ``eps`` that is not above 0.

    Example:
        >>> sums, counts = torch.tensor([[2.0], [6.0]]), torch.tensor([2.0, 2.0])  # of the features 0, 2 and 2, 4
        >>> naive_bayes_weights(sums, counts, torch.tensor([24.0]))  # the means are 1 and 3, the variance is 1
        (tensor([[1.],
                [3.]]), tensor([-1.1931, -5.1931]))
    """
    check_shapes(_FORMS, sums=sums, counts=counts, squares=squares)
    _check(eps)
    total = counts.sum()
    means = sums / torch.where(counts > 0, counts, 1.0)[:, None]
    # Rounding may bring the variance of a constant feature below 0.
    variances = ((squares - (sums * means).sum(0)) / total).clamp_min(0) + eps
    weight = means / variances
    return weight, (counts / total).log() - (means * weight).sum(1) / 2


def _check(eps: float) -> None:
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps={eps} must be > 0 and finite, or a constant feature would divide by 0.")


class NaiveBayesHead(Survey):
    """Computes a linear head in one pass over the data, without a training: a naive Bayes classifier on the features.

    The sums over the samples are those of :func:`naive_bayes_sums`, and the result, ``weight`` (C, D) and ``bias``
    (C,), is that of :func:`naive_bayes_weights`. Targets that the criterion ignores do not count.

    Args:
        eps: what is added to each variance; the authors' code uses 1e-9. Take more if features are constant, or nearly.

    Raises:
        ValueError: an ``eps`` that is not above 0.

    When to use: with a pretrained network and few samples of each class, where it needs fewer of them than logistic
    regression; or to begin the training of a head. Copy the result into a linear head:
    ``head.load_state_dict(survey_data(NaiveBayesHead(), network, loader))``.
    Cost: one forward pass over the data, and C · D numbers in float64.
    Interactions: the features are the inputs of the head, in evaluation mode, and the head that is there does not
    matter. Features that depend on each other are counted several times, so the probabilities are too sure: calibrate
    them. A network for two classes with one logit takes the difference of the two rows. A class without samples has a
    bias of -inf, which no training can use.

    Example:
        >>> survey = NaiveBayesHead()
        >>> features, target = torch.tensor([[0.0], [2.0], [2.0], [4.0]]), torch.tensor([0, 0, 1, 1])
        >>> survey.result(survey(features, torch.zeros(4, 2), target), rows=4)["weight"].float()
        tensor([[1.],
                [3.]])

    Paper: Zheng et al., Revisiting Discriminative vs. Generative Classifiers: Theory and Implications, ICML 2023,
    https://arxiv.org/abs/2302.02334. The formula is that of the authors' code.

    Differs from the authors' code: the bias is that of the whole linear form; the code compares squared distances.
    """

    function = staticmethod(naive_bayes_sums)
    problems = ("classes",)

    def __init__(self, *, eps: float = 1e-9) -> None:
        super().__init__()
        _check(eps)
        self.eps = eps

    def forward(self, features: Tensor, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """(N, D) features, (N, C) logits, (N,) classes or (N, C) probabilities -> ``sums``, ``counts``, ``squares``."""
        return naive_bayes_sums(features, logits, target)

    def result(self, sums: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The weight and the bias of a linear head."""
        weight, bias = naive_bayes_weights(sums["sums"], sums["counts"], sums["squares"], eps=self.eps)
        return {"weight": weight, "bias": bias}
