"""Histogram binning."""

from typing import ClassVar

import torch
from torch import Tensor

from lightning_objectives.calibration._one_against_rest import columns, divided_by_their_sum, probabilities
from lightning_objectives.kinds import Calibrator
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"inputs": forms("(N,) float"), "target": forms("(N,) float")}


def binned_rates(inputs: Tensor, target: Tensor, *, bins: int = 15) -> Tensor:
    r"""Compute the mean target of the samples in each of equally wide bins of their probability.

    Bin :math:`b = 1, \ldots, B` holds the inputs in :math:`((b - 1)/B,\ b/B]`, and the first bin 0 too. A bin without
    any gets its centre, the value that changes least.

    Args:
        inputs: (N,) float probabilities.
        target: (N,) float; 1 if it came true and 0 if not, or between.
        bins: :math:`B \ge 1`.

    Returns:
        (B,) rates, in float64.

    Raises:
        ValueError: shapes that do not fit, or no bin.

    Example:
        >>> binned_rates(torch.tensor([0.1, 0.5, 0.7]), torch.tensor([0.0, 1.0, 1.0]), bins=2)
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    check_shapes(_FORMS, inputs=inputs, target=target)
    _check(bins)
    places = _bin_of(inputs.detach(), bins)
    sums, counts = (
        torch.zeros(bins, dtype=torch.float64, device=inputs.device).index_add(0, places, part.detach().double())
        for part in (target, torch.ones_like(target))
    )
    centres = (torch.arange(bins, dtype=torch.float64, device=inputs.device) + 0.5) / bins
    return torch.where(counts > 0, sums / counts.clamp_min(1), centres)


def _bin_of(p: Tensor, bins: int) -> Tensor:
    edges = torch.arange(1, bins, dtype=p.dtype, device=p.device) / bins
    return torch.bucketize(p.contiguous(), edges)


def _check(bins: int) -> None:
    if not bins >= 1:
        raise ValueError(f"bins={bins} must be 1 or more; 15 is usual.")


class HistogramBinning(Calibrator):
    r"""Corrects probabilities that are wrong in any way: replaces each by the rate of the samples in its bin.

    The rates are those of :func:`binned_rates`, for each class against the others. A row is then divided by its sum; if
    all its classes get 0, they get :math:`1/C` each. Before the fit the probabilities are those of softmax.

    Args:
        bins: :math:`B`, the number of equally wide bins of each class.

    Raises:
        ValueError: no bin; logits of other classes than those of the fit; in ``fit``, logits that are not finite.

    When to use: as the simplest method without any assumption, to compare others with. Have some dozens of samples in
    most bins of each class. ``IsotonicCalibration`` finds the bins itself and usually does better.
    Cost: one search of the bin for each probability.
    Interactions: there are at most B values for each class, so ties and other top classes are usual, and rankings lose.
    Probabilities of exactly 0 and 1 are usual too: the negative log-likelihood of new data is then infinite if the
    target has the probability 0 (``Calibrate`` logs a large number in its place). With few bins it rises on the fitted
    set too. No gradient flows through it.

    Example:
        >>> binning = HistogramBinning(bins=2)
        >>> logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [3.0, 0.0]])
        >>> binning.fit(logits, torch.tensor([0, 1, 1, 0]))
        >>> binning(logits)[:, 1]
        tensor([0.6667, 0.6667, 0.6667, 0.0000])

    Paper: Zadrozny and Elkan, Obtaining Calibrated Probability Estimates from Decision Trees and Naive Bayesian
    Classifiers, ICML 2001, https://cseweb.ucsd.edu/~elkan/calibrated.pdf; for several classes Guo et al., On
    Calibration of Modern Neural Networks, ICML 2017, section 4.2, https://arxiv.org/abs/1706.04599.

    Differs from the paper: bins of equal width, as in Guo et al.; those of Zadrozny and Elkan hold equally many
    samples. Not checked at the source: what they do with an empty bin, and which edge belongs to a bin.
    """

    family = "overconfidence"
    fitted_shapes: ClassVar = {"rates": "(C, K) float"}

    rates: Tensor

    def __init__(self, *, bins: int = 15) -> None:
        super().__init__()
        _check(bins)
        self.bins = bins

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit the rates to (N, C) logits and (N,) classes or (N, C) probabilities."""
        self.rates = torch.stack([binned_rates(p, y, bins=self.bins) for p, y in columns(logits, target)])

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N, C) probabilities, in float32 at least."""
        fitted = self.check_logits(logits)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        if not fitted:
            return logits.to(dtype).softmax(1)
        p = probabilities(logits)
        # The fitted bins count, also if a state of another number of them was loaded.
        places = _bin_of(p.detach().T, self.rates.shape[1])
        return divided_by_their_sum(self.rates.to(p.device, p.dtype).gather(1, places).T).to(dtype)
