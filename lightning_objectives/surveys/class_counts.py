"""Counts of the classes of a data set."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_objectives.kinds import Survey
from lightning_objectives.shapes import check_classes, check_shapes


def class_counts(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    r"""Count the rows of each class: :math:`n_c = \sum_n t_{n, c}`, with :math:`t` one-hot or class probabilities.

    Args:
        logits: (N, C), which say how many classes there are.
        target: (N,) int classes or (N, C) float class probabilities.

    Returns:
        ``counts``, (C,) in float64, or on devices without it in float32.

    Raises:
        ValueError: shapes that do not fit, or fewer than two classes.

    Example:
        >>> import torch
        >>> class_counts(torch.zeros(3, 4), torch.tensor([1, 3, 1]))["counts"]
        tensor([0., 2., 0., 1.], dtype=torch.float64)
    """
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    if target.is_floating_point():
        return {"counts": target.sum(0, dtype=wide)}
    none = torch.zeros(logits.shape[1], dtype=wide, device=target.device)
    return {"counts": none.index_add(0, target.long(), none.new_ones(()).expand(len(target)))}


class ClassCounts(Survey):
    """Counts how many training samples each class has, for losses that take ``counts``.

    The counts are those of :func:`class_counts`. Targets that the criterion ignores do not count.

    Args:
        min_count: the least count, >= 0, for classes without samples: the losses refuse a count of 0.

    Raises:
        ValueError: a negative or infinite ``min_count``.

    When to use: before a training on a long tail, with ``BalancedSoftmaxLoss``, ``LogitAdjustedLoss``,
    ``ClassBalancedLoss`` or ``LDAMLoss``.
    Cost: one forward pass over the data, because the logits say how many classes there are.
    Interactions: ``SurveyData(ClassCounts(), sets="counts")`` hands the counts to the losses of the same training.

    Example:
        >>> import torch
        >>> survey = ClassCounts(min_count=0.5)
        >>> survey.result(survey(torch.zeros(3, 2), torch.tensor([1, 1, 1])), rows=3)["counts"]
        tensor([0.5000, 3.0000], dtype=torch.float64)

    Paper: used by Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, section 3,
    https://arxiv.org/abs/1901.05555.
    """

    exemplar = True
    function = staticmethod(class_counts)
    family = "class imbalance"
    problems = ("classes",)

    def __init__(self, *, min_count: float = 0.0) -> None:
        super().__init__()
        if not 0 <= min_count < float("inf"):
            raise ValueError(f"min_count={min_count} must be finite and >= 0; 0 leaves the counts as they are.")
        self.min_count = min_count

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (C,) ``counts``."""
        return class_counts(logits, target)

    def result(self, sums: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The counts, at least ``min_count``."""
        return {"counts": sums["counts"].clamp_min(self.min_count)}
