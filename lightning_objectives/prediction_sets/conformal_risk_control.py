"""Conformal risk control."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import SetPredictor
from lightning_objectives.prediction_sets._quantile import check_alpha, check_rows
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"scores": forms("(N,) float"), "costs": forms("(N,) float"), "weights": forms("(N,) float")}


def risk_threshold(scores: Tensor, costs: Tensor, weights: Tensor, *, alpha: float = 0.1) -> Tensor:
    r"""Compute the largest score that all sets must take in, so that the expected cost of a missed target stays small.

    The set of a threshold :math:`\lambda` misses the target of row i if its score is below it, at the cost
    :math:`\ell_i \in [0, 1]`. The result is the largest threshold with

    .. math::
        \frac{\sum_i w_i \ell_i \mathbb{1}[s_i < \lambda] + 1}{\sum_i w_i + 1} \le \alpha

    Args:
        scores: (N,) the scores s of the targets, none of them NaN.
        costs: (N,) :math:`\ell` in [0, 1], what it costs to miss each.
        weights: (N,) w in [0, 1], how much each row tells of new ones; ones if all are alike.
        alpha: the expected cost that is allowed, in (0, 1).

    Returns:
        () float64; :math:`-\infty` if even no miss is too much, so that sets hold all classes.

    Raises:
        ValueError: shapes that do not fit, costs or weights outside [0, 1], a NaN, or alpha outside (0, 1).

    Example:
        >>> scores = torch.tensor([0.9, 0.2, 0.6, 0.4])
        >>> risk_threshold(scores, torch.ones(4), torch.ones(4), alpha=0.4)  # (1 + 1) / 5 <= 0.4: one miss is allowed
        tensor(0.4000, dtype=torch.float64)

    Paper: Angelopoulos et al., Conformal Risk Control, ICLR 2024, equation 4, https://arxiv.org/abs/2208.02814; with
    weights: Farinhas et al., Non-Exchangeable Conformal Risk Control, ICLR 2024, https://arxiv.org/abs/2310.01262. The
    equation's number was not checked at the source.
    """
    check_shapes(_FORMS, scores=scores, costs=costs, weights=weights)
    check_alpha(alpha)
    for name, values in {"costs": costs, "weights": weights}.items():
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} must lie in [0, 1], but they are {values.min():.3g} to {values.max():.3g}.")
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN: leave their rows out.")
    order = scores.argsort()
    ranked = scores[order].double()
    missed = (weights.double() * costs.double())[order].cumsum(0)
    # Just above the i-th score, i rows are missed, with all that are equal to it.
    # A hair more, so that a cost that is equal to the bound is allowed, whatever the rounding of alpha.
    allowed = alpha * (weights.double().sum() + 1) * (1 + 1e-12) - 1
    if allowed < 0:
        return ranked.new_full((), -torch.inf)
    until = torch.searchsorted(missed, allowed, right=True)
    return ranked[until] if until < len(ranked) else ranked.new_full((), torch.inf)


class ConformalRiskControl(SetPredictor):
    r"""Predicts sets of classes whose expected cost of missing the target stays below a chosen number.

    A set holds the classes of at least a probability :math:`\lambda`, the :func:`risk_threshold` of the rows of the
    fit. If samples are exchangeable, the expected cost of a new one is at most :math:`\alpha`, whatever the network.
    With equal costs that is the share of targets outside of their sets, and with a decay the newer rows of the fit
    count more, for data that drift.

    Args:
        alpha: :math:`\alpha` in (0, 1), the expected cost that is allowed.
        costs: what it costs to miss a target of each class, one number in [0, 1] for each; None for 1.
        decay: in (0, 1]: the weight of a row of the fit is ``decay`` to the power of its age, the number of rows that
            came after it.

    Raises:
        ValueError: a setting outside its range; in ``fit``, soft targets, logits that are not finite, or another number
            of classes than ``costs``; logits with one class.

    When to use: if some mistakes are worse than others, such as a missed tumor; with ``decay=0.99`` or so if old data
    tell less than new ones, for which the promise then holds up to a term of the drift. Fit it on samples that were
    used for nothing else.
    Cost: a sort of the rows of the fit; nothing for new ones.
    Interactions: any calibration before it changes the sizes of the sets, not the risk. With a decay the rows must come
    in the order of time. The coverage that the callback logs is not the risk if ``costs`` differ.

    Example:
        >>> sets = ConformalRiskControl(alpha=0.5)
        >>> logits = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.1, 0.8, 0.1]]).log()
        >>> sets.fit(logits, torch.tensor([1, 0, 1]))
        >>> sets(logits)
        tensor([[ True, False, False],
                [ True,  True, False],
                [False,  True, False]])

    Paper: Angelopoulos et al., Conformal Risk Control, ICLR 2024, https://arxiv.org/abs/2208.02814; Farinhas et al.,
    Non-Exchangeable Conformal Risk Control, ICLR 2024, https://arxiv.org/abs/2310.01262.

    Differs from the authors' code of the second: it takes the threshold before the first violation on a grid; this is
    exact.
    """

    family = "uncertainty"

    threshold: Tensor

    def __init__(self, *, alpha: float = 0.1, costs: Sequence[float] | None = None, decay: float = 1.0) -> None:
        super().__init__()
        check_alpha(alpha)
        if costs is not None and not all(0 <= cost <= 1 for cost in costs):
            raise ValueError(f"costs={costs} must be numbers in [0, 1], one for each class: divide by the largest.")
        if not 0 < decay <= 1:
            raise ValueError(f"decay={decay} must be in (0, 1]; 1 counts all rows alike.")
        self.alpha = alpha
        self.costs = None if costs is None else tuple(costs)
        self.decay = decay
        self.register_buffer("threshold", torch.full((), -torch.inf, dtype=torch.float64))

    def fit(self, logits: Tensor, target: Tensor, generator: torch.Generator | None = None) -> None:
        """Fit the threshold to (N, C) logits and (N,) classes, with a decay in the order of time."""
        check_rows(logits, target)
        if self.costs is not None and len(self.costs) != logits.shape[1]:
            raise ValueError(f"costs={self.costs} must have a number for each of the {logits.shape[1]} classes.")
        target = target.long()
        own = self._scores(logits.detach()).gather(1, target[:, None]).squeeze(1)
        costs = torch.ones_like(own) if self.costs is None else own.new_tensor(self.costs)[target]
        ages = torch.arange(len(own) - 1, -1, -1, device=own.device, dtype=own.dtype)
        self.threshold.copy_(risk_threshold(own, costs, self.decay**ages, alpha=self.alpha))

    def forward(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, C) logits -> (N, C) bool: which classes are in the set of each row."""
        self.check_logits(logits)
        scores = self._scores(logits)
        # A score that is NaN is not below the threshold, so its class stays in the set.
        return ~(scores < self.threshold.to(scores.device, scores.dtype))

    @staticmethod
    def _scores(logits: Tensor) -> Tensor:
        return logits.to(torch.float32 if logits.device.type == "mps" else torch.float64).softmax(1)
