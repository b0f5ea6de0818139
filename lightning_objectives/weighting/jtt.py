"""Just train twice."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes


class JTT(Weighting):
    r"""Trains a second network harder on the samples that a first one got wrong, without knowing their groups.

    .. math::
        w_i \propto \lambda \text{ for a sample of the error set}, \qquad w_i \propto 1 \text{ for another one}

    Args:
        errors: the error set: the positions in the training set of the samples that the first network gets wrong.
        upweight: :math:`\lambda \ge 1`; 1 is the plain training.

    Returns:
        ``forward(index)`` gives (N,) weights > 0 with mean 1 in the batch, float32, without gradient.

    Raises:
        ValueError: a position below 0, or an ``upweight`` below 1.

    When to use: if a group of samples is bad because of a spurious feature, and only validation data know the group.
    Train a network for a few epochs (60 on Waterbirds, 1 on CelebA), predict the training set once in eval mode, and
    collect the positions of the errors. Then train a new network with these weights: 100 on Waterbirds, 50 on CelebA,
    4 to 6 on text. Tune both numbers for the worst group of the validation set.
    Cost: a first training; one bit for each sample of the data set, and one all-gather of the positions.
    Interactions: wrap the data set with ``with_index``. The mean weight is 1 in each batch, so a batch with many errors
    does not make a longer step, in contrast to copies of the errors. Errors of a network that was trained to the end
    are useless: they are few, and mostly wrong labels.

    Example:
        >>> JTT(errors=[1, 4], upweight=6.0)(torch.arange(5))
        tensor([0.3333, 2.0000, 0.3333, 0.3333, 2.0000])

    Paper: Liu et al., Just Train Twice: Improving Group Robustness without Training Group Information, ICML 2021,
    https://arxiv.org/abs/2107.09044.

    Differs from the authors' code: it adds ``upweight`` copies of each error to the data, so that an error counts
    ``upweight`` + 1 times.
    """

    family = "group shift"
    example: ClassVar[dict[str, Any]] = {"errors": (1, 4), "upweight": 6.0}

    def __init__(self, *, errors: Sequence[int], upweight: float) -> None:
        super().__init__()
        self.errors = tuple(errors)
        if any(position < 0 for position in self.errors):
            raise ValueError(f"errors holds {min(self.errors)}, but positions in the training set begin at 0.")
        if not 1 <= upweight < float("inf"):
            raise ValueError(f"upweight={upweight} must be >= 1 and finite; 1 is the plain training.")
        self.upweight = upweight
        # The last entry stands for all positions beyond the last error.
        wrong = torch.zeros(max(self.errors, default=-1) + 2, dtype=torch.bool)
        wrong[list(self.errors)] = True
        self.register_buffer("_wrong", wrong, persistent=False)
        self._wrong: Tensor

    def forward(self, index: Tensor) -> Tensor:
        """(N,) positions -> (N,) weights."""
        check_shapes(index=index)
        wrong = self._wrong[index.long().clamp_max(len(self._wrong) - 1)]
        weights = torch.where(wrong, float(self.upweight), 1.0)
        return weights / weights.mean()
