"""Bayesian binning into quantiles."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_objectives.calibration._one_against_rest import columns, divided_by_their_sum, probabilities
from lightning_objectives.kinds import Calibrator
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"inputs": forms("(N,) float"), "target": forms("(N,) float")}


def averaged_quantile_bins(
    inputs: Tensor, target: Tensor, *, min_bins: int | None = None, max_bins: int | None = None, prior: float = 2.0
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Compute the rates of bins that hold equally many samples, averaged over all numbers of bins.

    The model with :math:`B` bins has :math:`n_b` samples in bin b, and :math:`m_b` of them came true. It is weighted
    by its probability given the samples,

    .. math::
        w_B \propto \prod_b \frac{\Gamma(N'/B)}{\Gamma(n_b + N'/B)}
        \frac{\Gamma(m_b + \alpha_b)}{\Gamma(\alpha_b)}
        \frac{\Gamma(n_b - m_b + \beta_b)}{\Gamma(\beta_b)},
        \qquad \alpha_b = \frac{N'}{B} \pi_b, \quad \beta_b = \frac{N'}{B} (1 - \pi_b)

    with :math:`\pi_b` the middle of the bin, and the result is :math:`\sum_B w_B\, m_b / n_b`. An edge lies midway
    between two different inputs; equal inputs stay in one bin, so a model may have fewer bins than asked for.

    Args:
        inputs: (N,) float probabilities, in any order.
        target: (N,) float; 1 if it came true and 0 if not, or between.
        min_bins: the least :math:`B`; None for :math:`N^{1/3} / 10`.
        max_bins: the greatest :math:`B`; None for :math:`10 N^{1/3}`. Never more than there are different inputs.
        prior: :math:`N' > 0`, the number of samples that the prior counts as, over all bins together.

    Returns:
        the (K - 1,) edges, increasing; the (K,) rates between them; and the (M,) weights of the models, from the least
        number of bins on. All are float64.

    Raises:
        ValueError: shapes that do not fit, settings outside of their range, or no samples.

    Example:
        >>> p = torch.tensor([0.1, 0.2, 0.8, 0.9])
        >>> averaged_quantile_bins(p, torch.tensor([0.0, 0.0, 1.0, 1.0]), min_bins=2, max_bins=2)
        (tensor([0.5000], ...), tensor([0., 1.], ...), tensor([1.], ...))
    """
    check_shapes(_FORMS, inputs=inputs, target=target)
    _check(min_bins, max_bins, prior)
    n = len(inputs)
    if not n:
        raise ValueError("There are no samples to fit bins on.")
    points, group, counts = inputs.detach().double().unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]  # torch
    trues = torch.zeros_like(points).index_add(0, group, target.detach().double())
    upto, trues_upto = counts.double().cumsum(0), trues.cumsum(0)
    midways = (points[:-1] + points[1:]) / 2

    root = n ** (1 / 3)
    most = min(math.ceil(10 * root) if max_bins is None else max_bins, len(points))
    least = min(max(1, math.floor(root / 10)) if min_bins is None else min_bins, most)
    scores, rates = [], []
    for bins in range(least, most + 1):
        # Each bin ends after the group that its last sample is in; ties may end two bins at one place.
        ends = torch.searchsorted(upto, torch.arange(1, bins + 1, device=upto.device) * n // bins)
        ends = ends[ends.diff(prepend=ends.new_full((1,), -1)) > 0]
        edges = torch.cat([midways.new_zeros(1), midways[ends[:-1]], midways.new_ones(1)])
        own, hits = (part[ends].diff(prepend=part.new_zeros(1)) for part in (upto, trues_upto))
        strength, middle = prior / len(ends), (edges[:-1] + edges[1:]) / 2
        alpha, beta = strength * middle, strength * (1 - middle)
        given = torch.lgamma(hits + alpha) + torch.lgamma(own - hits + beta) - torch.lgamma(own + strength)
        scores.append((given + math.lgamma(strength) - torch.lgamma(alpha) - torch.lgamma(beta)).sum())
        place = torch.searchsorted(ends, torch.arange(len(points), device=ends.device))
        rates.append((hits / own)[place])
    weights = torch.stack(scores).softmax(0)
    rate = weights @ torch.stack(rates)
    changes = rate.diff() != 0
    return midways[changes], torch.cat([rate[:1], rate[1:][changes]]), weights


def _check(min_bins: int | None, max_bins: int | None, prior: float) -> None:
    least, most = 1 if min_bins is None else min_bins, math.inf if max_bins is None else max_bins
    if not 1 <= least <= most:
        raise ValueError(
            f"min_bins={min_bins} must be 1 or more, and max_bins={max_bins} no less; None takes the paper's."
        )
    if not 0 < prior < math.inf:
        raise ValueError(f"prior={prior} must be positive and finite; 2 is usual.")


class BBQ(Calibrator):
    r"""Corrects probabilities that are wrong in any way: averages histograms of many numbers of bins.

    The rates are those of :func:`averaged_quantile_bins`, for each class against the others. A row is then divided by
    its sum; if all its classes get 0, they get :math:`1/C` each. Before the fit the probabilities are those of softmax.

    Args:
        min_bins: the least number of bins; None for :math:`N^{1/3} / 10`.
        max_bins: the greatest number of bins; None for :math:`10 N^{1/3}`.
        prior: :math:`N'`, the number of samples that the prior counts as, over all bins together.

    Raises:
        ValueError: settings outside of their range; logits of other classes than those of the fit; in ``fit``, no
            samples, or logits that are not finite.

    When to use: in place of ``HistogramBinning``, if you do not know how many bins to take. Have some hundred samples
    or more of each class.
    Cost: a sort for each class, and about :math:`10 N^{1/3}` histograms of it. It keeps two numbers for each different
    rate, at most one for each sample and class.
    Interactions: as for ``HistogramBinning``: the top class may change, no gradient flows through it, and where all
    models have the rate 0 the probability is 0, so that the negative log-likelihood of new data may be infinite
    (``Calibrate`` logs a large number in its place).

    Example:
        >>> bbq = BBQ(max_bins=2)
        >>> logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [2.0, 0.0], [3.0, 0.0]])
        >>> bbq.fit(logits, torch.tensor([1, 1, 0, 0]))
        >>> bbq(logits)[:, 1]
        tensor([0.9640, 0.9640, 0.0360, 0.0360])

    Paper: Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015,
    https://ojs.aaai.org/index.php/AAAI/article/view/9602.

    Differs from the paper: it is for two classes; more are taken one against the others here.

    Not checked at the source: the range of the numbers of bins, :math:`N' = 2`, the middle of a bin as its
    :math:`\pi_b`, and :math:`m_b / n_b` as the estimate of a bin. A comment in the authors' code says that the paper
    takes 2 for each bin, which is :math:`N' = 2 B`.
    """

    family = "overconfidence"
    fitted_shapes: ClassVar = {"edges": "(C, K) float", "rates": "(C, K) float"}

    edges: Tensor
    rates: Tensor

    def __init__(self, *, min_bins: int | None = None, max_bins: int | None = None, prior: float = 2.0) -> None:
        super().__init__()
        _check(min_bins, max_bins, prior)
        self.min_bins = min_bins
        self.max_bins = max_bins
        self.prior = prior

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit the rates to (N, C) logits and (N,) classes or (N, C) probabilities."""
        found = [averaged_quantile_bins(p, y, **self.settings()) for p, y in columns(logits, target)]
        # The last bin of each class has no upper edge, and rows are filled up by bins that nothing falls into.
        edges = [torch.cat([edge, edge.new_full((1,), torch.inf)]) for edge, _, _ in found]
        self.edges = pad_sequence(edges, batch_first=True, padding_value=torch.inf)
        self.rates = pad_sequence([rate for _, rate, _ in found], batch_first=True)

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N, C) probabilities, in float32 at least."""
        fitted = self.check_logits(logits)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        if not fitted:
            return logits.to(dtype).softmax(1)
        p = probabilities(logits).detach().T.contiguous()
        edges, rates = (buffer.to(p.device, p.dtype) for buffer in (self.edges, self.rates))
        return divided_by_their_sum(rates.gather(1, torch.searchsorted(edges, p)).T).to(dtype)
