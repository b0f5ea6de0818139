"""Isotonic calibration."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lightning_objectives.calibration._one_against_rest import (
    columns,
    divided_by_their_sum,
    piecewise_linear,
    probabilities,
)
from lightning_objectives.kinds import Calibrator
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"inputs": forms("(N,) float"), "target": forms("(N,) float")}


def isotonic_regression(inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute the non-decreasing function of the inputs with the least squared distance to the target.

    .. math::
        f = \arg\min_{f \text{ non-decreasing}} \sum_i (f(x_i) - y_i)^2

    It is constant on blocks of neighbouring inputs, each with the mean of its targets. Neighbouring blocks are pooled
    while the lower one has a mean that is not lower (pool adjacent violators). Equal inputs are one block from the
    beginning.

    Args:
        inputs: (N,) float :math:`x`, in any order.
        target: (N,) float :math:`y`.

    Returns:
        the first and last input of each block, increasing, and the value of the function there; both (K,) float64.
        Between two blocks the function is a straight line.

    Raises:
        ValueError: shapes that do not fit, or no samples.

    Example:
        >>> isotonic_regression(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 0.5]))
        (tensor([1., 2., 3.], dtype=torch.float64), tensor([0.0000, 0.7500, 0.7500], dtype=torch.float64))
    """
    check_shapes(_FORMS, inputs=inputs, target=target)
    if not len(inputs):
        raise ValueError("There are no samples to fit an isotonic function on.")
    points, block, counts = inputs.detach().double().unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]  # torch
    sums = counts.new_zeros(len(points), dtype=torch.float64).index_add(0, block, target.detach().double())
    first = last = points
    while True:
        means = sums / counts
        begins = F.pad(means.diff() > 0, (1, 0), value=True)
        if begins.all():
            break
        # All neighbours that violate the order are pooled at once: in which order one pools them changes nothing.
        block = begins.cumsum(0) - 1
        sums = sums.new_zeros(int(block[-1]) + 1).index_add(0, block, sums)
        counts = counts.new_zeros(len(sums)).index_add(0, block, counts)
        first, last = first[begins], last[F.pad(begins[1:], (0, 1), value=True)]
    ends = torch.stack([torch.ones_like(begins), first < last], 1).flatten()
    return torch.stack([first, last], 1).flatten()[ends], means.repeat_interleave(2)[ends]


class IsotonicCalibration(Calibrator):
    r"""Corrects probabilities that are wrong in any way that keeps their order: learns a function for each class.

    For each class, :func:`isotonic_regression` of "the sample is of this class" on the class's probability. A new
    probability is read off the function, which is a straight line between two blocks and constant beyond the first and
    the last. The row is then divided by its sum. If all classes of a row get 0, they get :math:`1/C` each. Before the
    fit the probabilities are those of softmax.

    Raises:
        ValueError: logits of other classes than those of the fit; in ``fit``, no samples, or logits that are not
            finite.

    When to use: if a reliability diagram shows errors that no temperature corrects, and there are a thousand samples or
    more for each class. With fewer it fits the noise.
    Cost: a sort of the kept probabilities for each class; the functions take two numbers for each end of a block.
    Interactions: probabilities of exactly 0 and 1 are usual. The negative log-likelihood of new data is then infinite
    if the target has the probability 0 (``Calibrate`` logs a large number in its place). On the fitted set it never
    rises. Equal values are usual too, so the top class may change.

    Example:
        >>> calibration = IsotonicCalibration()
        >>> logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]])
        >>> calibration.fit(logits, torch.tensor([0, 1, 0, 1]))
        >>> calibration(logits)[:, 1]
        tensor([0.0000, 0.5000, 0.5000, 1.0000])

    Paper: Zadrozny and Elkan, Transforming Classifier Scores into Accurate Multiclass Probability Estimates, KDD 2002,
    https://doi.org/10.1145/775047.775151.
    """

    exemplar = True
    family = "overconfidence"
    fitted_shapes: ClassVar = {"points": "(C, K) float", "values": "(C, K) float"}

    points: Tensor
    values: Tensor

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit the functions to (N, C) logits and (N,) classes or (N, C) probabilities."""
        maps = [isotonic_regression(p, y) for p, y in columns(logits, target)]
        lengths = torch.tensor([len(points) for points, _ in maps], device=logits.device)
        padding = torch.arange(int(lengths.max()), device=logits.device) >= lengths[:, None]
        # Each row is filled up by its last entry, so that a search finds the same place.
        self.points, self.values = (
            pad_sequence(list(rows), batch_first=True).where(~padding, torch.stack([row[-1] for row in rows])[:, None])
            for rows in zip(*maps)
        )

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N, C) probabilities, in float32 at least."""
        fitted = self.check_logits(logits)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        if not fitted:
            return logits.to(dtype).softmax(1)
        p = probabilities(logits).T.contiguous()
        points, values = (buffer.to(p.device, p.dtype) for buffer in (self.points, self.values))
        return divided_by_their_sum(piecewise_linear(points, values, p).T).to(dtype)
