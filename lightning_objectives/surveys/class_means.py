"""Means of the features of each class."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_objectives.kinds import Survey
from lightning_objectives.shapes import check_classes, check_shapes


def class_sums(features: Tensor, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    r"""Add up the features of each class, and count its rows: their quotient is the mean of the class.

    .. math::
        s_c = \sum_n t_{n, c} \, h_n, \qquad n_c = \sum_n t_{n, c}

    with :math:`h` the features, and :math:`t` one-hot or class probabilities.

    Args:
        features: (N, D), in any float type.
        logits: (N, C), which say how many classes there are.
        target: (N,) int classes or (N, C) float class probabilities.

    Returns:
        ``sums``, (C, D), and ``counts``, (C,), without gradient, in float64, or on devices without it in float32.

    Raises:
        ValueError: shapes that do not fit, or fewer than two classes.

    Example:
        >>> import torch
        >>> sums = class_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.zeros(3, 2), torch.tensor([1, 0, 1]))
        >>> sums["sums"]
        tensor([[2.],
                [5.]], dtype=torch.float64)
        >>> sums["counts"]
        tensor([1., 2.], dtype=torch.float64)
    """
    check_shapes(features=features, logits=logits, target=target)
    check_classes(logits)
    features = features.detach().to(torch.float32 if logits.device.type == "mps" else torch.float64)
    if target.is_floating_point():
        shares = target.detach().to(features.dtype)
        return {"sums": shares.T @ features, "counts": shares.sum(0)}
    classes = target.long()
    sums = features.new_zeros(logits.shape[1], features.shape[1]).index_add(0, classes, features)
    counts = features.new_zeros(logits.shape[1]).index_add(0, classes, features.new_ones(len(classes)))
    return {"sums": sums, "counts": counts}


class ClassMeans(Survey):
    """Measures the mean of the features of each class, and how many samples it is a mean of.

    The sums over the samples are those of :func:`class_sums`. The result is ``means``, (C, D), and ``counts``, (C,).
    A class without samples has no mean: its row is NaN and its count 0. Targets that the criterion ignores do not
    count.

    When to use: after a training, to classify by the nearest mean, to tell other inputs from usual ones by their
    distance to the means, or to see how far the features have collapsed to them.
    Cost: one forward pass over the data, and C · D numbers in float64.
    Interactions: the features are the inputs of the head, in evaluation mode.

    Example:
        >>> import torch
        >>> survey = ClassMeans()
        >>> sums = survey(torch.tensor([[1.0], [2.0], [4.0]]), torch.zeros(3, 3), torch.tensor([1, 0, 1]))
        >>> survey.result(sums, rows=3)["means"]
        tensor([[2.0000],
                [2.5000],
                [   nan]], dtype=torch.float64)

    Paper: used by Papyan, Han and Donoho, Prevalence of Neural Collapse during the Terminal Phase of Deep Learning
    Training, PNAS 2020, https://arxiv.org/abs/2008.08186.
    """

    function = staticmethod(class_sums)
    problems = ("classes",)

    def forward(self, features: Tensor, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """(N, D) features, (N, C) logits, (N,) classes or (N, C) probabilities -> (C, D) ``sums``, (C,) ``counts``."""
        return class_sums(features, logits, target)

    def result(self, sums: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The means, NaN for a class without samples, and the counts."""
        return {"means": sums["sums"] / sums["counts"][:, None], "counts": sums["counts"]}
