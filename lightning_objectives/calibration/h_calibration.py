"""h-calibration."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Calibrator
from lightning_objectives.shapes import check_classes, check_shapes

_RANGE = 100.0
"""The segments end at this negative log-probability; beyond it the last one goes on."""


def h_calibration_loss(
    logits: Tensor, target: Tensor, *, window: int = 200, clusters: int = 15, leave_one_out: bool = False
) -> Tensor:
    r"""Compute how far probabilities are from the frequencies of the events with nearly the same probability.

    Each class of each sample is an event of the probability :math:`p = \mathrm{softmax}(z)_c`, which comes true or not,
    :math:`o`. With all events in the order of p,

    .. math::
        T_i = \Big| \frac{1}{M + 1} \sum_{|j - i| \le M / 2} (p_j - o_j) \Big|, \qquad
        \ell = \frac{1}{K} \sum_k \operatorname{mean}_{i \in k} T_i

    where the clusters k are those of p on a line, so that the few large probabilities count as much as the many small
    ones. Beyond the first and the last event there is nothing, so :math:`T` is lower there.

    Args:
        logits: (N, C) :math:`z`, in any float type; computed in float64.
        target: (N,) int classes, or (N, C) float class probabilities.
        window: M, even.
        clusters: K of the events' probabilities.
        leave_one_out: take the mean over the classes c of the losses without the samples of c, as the authors do. It is
            far from 0 for right probabilities if there are few classes and one is frequent, because the others come
            true more often without it.

    Returns:
        () float64; near 0 for right probabilities and many samples. A gradient flows through p in its order.

    Raises:
        ValueError: shapes that do not fit, no samples, logits that are not finite, or a setting out of its range.

    Example:
        >>> logits = torch.tensor([[0.75, 0.25]]).log().expand(4, 2)
        >>> right, wrong = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
        >>> [round(h_calibration_loss(logits, y, window=6, clusters=2).item(), 3) for y in (right, wrong)]
        [0.054, 0.116]

    Paper: Huang et al., h-calibration: Rethinking Classifier Recalibration with Probabilistic Error-Bounded Objective,
    TPAMI 2025, https://arxiv.org/abs/2506.17968. The loss is the default one of the authors' code
    (https://github.com/WenjianHuang93/h-Calibration, ``loss/hCalib.py``).

    Differs from the code: ``leave_one_out`` is off by default; without the factor 1e5 and the tolerance of 1e-20; the
    clusters start equally far from each other in place of at random; the sums are exact.
    """
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    _check(window, clusters)
    if not len(logits) or not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(f"{bad} of {len(logits)} samples have logits that are not finite; there must be one or more.")
    classes = logits.shape[1]
    p = logits.double().softmax(1)
    outcome = target.double() if target.is_floating_point() else F.one_hot(target.long(), classes).double()
    order = p.detach().flatten().argsort(stable=True)
    p, error, owner = p.flatten()[order], (p - outcome).flatten()[order], outcome.argmax(1)[order // classes]
    groups = [owner != c for c in range(classes)] if leave_one_out else [torch.ones_like(owner, dtype=torch.bool)]
    losses = [_loss(p[kept], error[kept], window, clusters) for kept in groups if kept.any()]
    return torch.stack(losses).mean()


def _loss(p: Tensor, error: Tensor, window: int, clusters: int) -> Tensor:
    """The loss of events in the order of their probabilities."""
    sums = F.pad(error.cumsum(0), (1, 0))
    place = torch.arange(len(p), device=p.device)
    first, last = (place - window // 2).clamp_min(0), (place + window // 2 + 1).clamp_max(len(p))
    gaps = (sums[last] - sums[first]).abs() / (window + 1)
    member = _clusters(p.detach(), clusters)
    counts = torch.bincount(member, minlength=clusters)
    total = gaps.new_zeros(clusters).index_add(0, member, gaps)
    return (total / counts.clamp_min(1)).mean()


def _clusters(p: Tensor, count: int) -> Tensor:
    """The cluster of each probability, by the k-means of a line (Lloyd's steps)."""
    low, high = float(p.min()), float(p.max())
    centres = torch.linspace(low, high, count, dtype=p.dtype, device=p.device)
    member = torch.zeros_like(p, dtype=torch.int64)
    for _ in range(25):
        member = torch.bucketize(p, (centres[1:] + centres[:-1]) / 2)
        counts = torch.bincount(member, minlength=count)
        means = torch.zeros_like(centres).index_add(0, member, p) / counts.clamp_min(1)
        centres = torch.where(counts > 0, means, centres)
    return member


def _check(window: int, clusters: int) -> None:
    if window < 2 or window % 2:
        raise ValueError(f"window={window} must be even and >= 2: as many events on each side of one.")
    if clusters < 1:
        raise ValueError(f"clusters={clusters} must be >= 1.")


class HCalibration(Calibrator):
    r"""Corrects probabilities by a monotone map that makes each one the frequency of the events that have it.

    The map of the log-probabilities is piecewise linear, with the same slopes for all classes. They are fitted to
    :func:`h_calibration_loss` by Adam, from the identity on. Of all steps that with the lowest negative log-likelihood
    is kept.

    Args:
        segments: of the map, between the log-probabilities 0 and -100.
        window: events that are compared at a time, even. Less than the number of events.
        clusters: of the events' probabilities.
        leave_one_out: leave each class out in turn, as the authors do; not for few classes of unequal frequency.
        steps: of Adam, each over all samples.
        learning_rate: of Adam, for the logarithms of the slopes.

    Raises:
        ValueError: a setting outside its range; in ``fit``, logits that are not finite, or no samples.

    When to use: if ``TemperatureScaling`` leaves a calibration error in some range of the probabilities, and there are
    thousands of samples. The probabilities of all classes are corrected, not those of the first alone.
    Cost: in each step a sort of N C events; with ``leave_one_out`` their sums C times.
    Interactions: the top class never changes, so the accuracy stays.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]]).expand(40, 2)  # too sure: right in three of four cases
        >>> scaling = HCalibration(window=20)
        >>> scaling.fit(logits, torch.tensor([0, 0, 0, 1]).repeat(10))
        >>> bool(scaling(logits)[0, 0] < logits.softmax(1)[0, 0])
        True

    Paper: Huang et al., h-calibration: Rethinking Classifier Recalibration with Probabilistic Error-Bounded Objective,
    TPAMI 2025, https://arxiv.org/abs/2506.17968.

    Differs from the paper: its code keeps slopes positive by their absolute value, here by a logarithm, and its map
    jumps where a slope changes, which this one does not. Choosing the step by the likelihood is one of its three ways.
    Not checked at the source: the numbers of segments and steps, and the learning rate.
    """

    family = "overconfidence"
    keeps_top_class = True

    log_slopes: Tensor

    def __init__(
        self,
        *,
        segments: int = 100,
        window: int = 200,
        clusters: int = 15,
        leave_one_out: bool = False,
        steps: int = 100,
        learning_rate: float = 0.05,
    ) -> None:
        super().__init__()
        _check(window, clusters)
        for name, value in {"segments": segments, "steps": steps, "learning_rate": learning_rate}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be finite and > 0.")
        self.segments = segments
        self.window = window
        self.clusters = clusters
        self.leave_one_out = leave_one_out
        self.steps = steps
        self.learning_rate = learning_rate
        self.register_buffer("log_slopes", torch.zeros(segments, dtype=torch.float64))

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit the map to (N, C) logits and (N,) classes or (N, C) probabilities."""
        check_shapes(logits=logits, target=target)
        with torch.inference_mode(False), torch.enable_grad():
            z = logits.detach().clone().double()
            y = target.clone()
            slopes = torch.zeros_like(self.log_slopes, device=z.device).requires_grad_()
            optimizer = torch.optim.Adam([slopes], lr=self.learning_rate)
            settings: dict[str, Any] = {
                "window": self.window,
                "clusters": self.clusters,
                "leave_one_out": self.leave_one_out,
            }
            best, kept = math.inf, slopes.detach().clone()
            for _ in range(self.steps + 1):  # the last computes the likelihood alone
                mapped = self._mapped(z, slopes)
                loss = h_calibration_loss(mapped, y, **settings)
                likelihood = float(F.cross_entropy(mapped.detach(), y.double() if y.is_floating_point() else y.long()))
                if likelihood < best:
                    best, kept = likelihood, slopes.detach().clone()
                (slopes.grad,) = torch.autograd.grad(loss, [slopes])
                optimizer.step()
            self.log_slopes.copy_(kept)

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> (N, C) probabilities, in float32 at least."""
        check_shapes(logits=logits)
        check_classes(logits)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return self._mapped(logits.to(wide), self.log_slopes.to(logits.device, wide)).softmax(1)

    def _mapped(self, logits: Tensor, log_slopes: Tensor) -> Tensor:
        slopes, width = log_slopes.exp(), _RANGE / self.segments
        x = -logits.log_softmax(1)
        segment = (x.detach() / width).long().clamp(0, self.segments - 1)
        starts = F.pad(slopes.cumsum(0)[:-1] * width, (1, 0))
        return -(starts[segment] + slopes[segment] * (x - segment * width))
