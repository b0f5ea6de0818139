"""A curriculum by a known difficulty of the samples."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes
from lightning_objectives.weighting._positions import numbers_at


class DifficultyCurriculum(Weighting):
    r"""Trains on easy samples first, by a difficulty that you know beforehand: hard samples gain weight epoch by epoch.

    .. math::
        w_i = D_i + \frac{t}{m} (1 - D_i) \quad \text{for } t < m, \qquad w_i = 1 \text{ afterwards}

    with :math:`D_i` the easiness of the sample and :math:`t` the number of completed epochs.

    Args:
        easiness: :math:`D \in [0, 1]`, a number for each sample of the training set, by its position: 1 for the
            easiest samples, which always weigh 1, and 0 for those that begin with the weight 0.
        epochs: :math:`m \ge 1`, the epochs until all samples weigh 1. The authors' code uses 20.

    Returns:
        ``forward(index, epoch)`` gives (N,) weights in [0, 1], float32, without gradient. Their mean is not 1.

    Raises:
        ValueError: an easiness outside [0, 1], or none at all, or fewer epochs than 1; in the training, positions of
            another shape than (N,), or beyond the list. On a GPU the latter is torch's own error.

    When to use: if something outside of the network tells how hard a sample is: how high a simple ranker puts a
    relevant answer, how many annotators agree, how long a text is. Rescale it to [0, 1]. Without such a number use
    ``SelfPaced``, which goes by the losses.
    Cost: one number for each sample of the training set, on the device; one all-gather of the positions.
    Interactions: wrap the data set with ``with_index``. The mean of the weights is below 1 at first, so the first steps
    are smaller. An epoch is a pass over the data; the authors' code draws batches without end.

    Example:
        >>> method = DifficultyCurriculum(easiness=[1.0, 0.5, 0.0], epochs=4)
        >>> index = torch.arange(3)
        >>> method(index, 0), method(index, 1), method(index, 4)
        (tensor([1.0000, 0.5000, 0.0000]), tensor([1.0000, 0.6250, 0.2500]), tensor([1., 1., 1.]))

    Paper: MacAvaney et al., Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020,
    https://arxiv.org/abs/2004.14269. The formula is that of the authors' code.

    Differs from the authors' code: each loss is multiplied by its own weight. For pointwise losses the code multiplies
    the mean loss of a batch by the mean weight, and adds 1e-8 to each easiness.
    """

    family = "curriculum"
    example: ClassVar[dict[str, Any]] = {"easiness": (1.0, 0.5, 0.0, 0.25) * 24, "epochs": 4}
    unkept_laws: ClassVar[dict[str, str]] = {
        "equal_samples_weigh_the_same": "equal samples have the same weight, which their easiness decides",
        "one_weight_a_sample_and_their_mean_is_one": "a batch of hard samples counts less until the curriculum ends",
    }

    def __init__(self, *, easiness: Sequence[float], epochs: int = 20) -> None:
        super().__init__()
        self.easiness = tuple(easiness)
        if not self.easiness:
            raise ValueError("easiness is empty: it must hold a number for each sample of the training set.")
        for position, value in enumerate(self.easiness):
            if not 0 <= value <= 1:
                raise ValueError(
                    f"easiness[{position}]={value} must be in [0, 1]: rescale the scores, so that 1 is the easiest."
                )
        if epochs < 1:
            raise ValueError(f"epochs={epochs} must be >= 1: the epochs until all samples weigh 1.")
        self.epochs = epochs
        self.register_buffer("_easiness", torch.tensor(self.easiness, dtype=torch.float32), persistent=False)
        self._easiness: Tensor

    def forward(self, index: Tensor, epoch: int | Tensor) -> Tensor:
        """(N,) positions -> (N,) weights."""
        check_shapes(index=index)
        easiness = numbers_at(index, self._easiness, name="easiness")
        return easiness + min(int(epoch) / self.epochs, 1.0) * (1 - easiness)
