"""Adaptive prediction sets."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_objectives.kinds import SetPredictor
from lightning_objectives.prediction_sets._quantile import check_alpha, check_rows, conformal_quantile
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"p": forms("(N, C) float"), "u": forms("(N,) float")}


def aps_scores(p: Tensor, u: Tensor) -> Tensor:
    r"""Compute how much probability a set must hold before it takes in each class.

    .. math::
        s_c = \sum_{c' \text{ before } c} p_{c'} + u \, p_c

    where the classes are in the order of their probabilities, the greatest first, and of equal ones the lower index.

    Args:
        p: (N, C) probabilities.
        u: (N,) in [0, 1]: draws from the uniform distribution, one for each row.

    Returns:
        (N, C) scores, in the type of the probabilities.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> aps_scores(torch.tensor([[0.3, 0.6, 0.1]]), torch.tensor([0.5]))
        tensor([[0.7500, 0.3000, 0.9500]])

    Paper: Romano, Sesia and Candès, Classification with Valid and Adaptive Coverage, NeurIPS 2020, equations 3 to 7,
    https://arxiv.org/abs/2006.02544.

    Differs from the paper: :math:`u` is :math:`1 - U` of the paper, which has the same distribution.
    """
    check_shapes(_FORMS, p=p, u=u)
    ranked = p.sort(dim=1, descending=True, stable=True)
    before = F.pad(ranked.values.cumsum(1)[:, :-1], (1, 0))
    scores = before + u[:, None].to(p.dtype) * ranked.values
    return torch.empty_like(scores).scatter(1, ranked.indices, scores)


class APS(SetPredictor):
    r"""Predicts sets of classes that hold the target of a chosen share of new samples: larger sets for harder samples.

    ``fit`` takes the :func:`~lightning_objectives.prediction_sets.conformal_quantile` of the scores
    (:func:`aps_scores`) of the targets. A set holds the classes whose score is at most that threshold. If samples are
    exchangeable, as independent draws are, the probability that it holds the target is at least :math:`1 - \alpha`,
    whatever the network. That is a mean over all samples and all fits, and no promise for one class or one group.

    Args:
        alpha: :math:`\alpha`, the share of targets that may lie outside; the paper's experiments take 0.1.
        randomized: whether :math:`u` is drawn for each row, as in the paper; the coverage is then exact up to
            :math:`1 / (n + 1)`. If not, :math:`u = 0`: the result draws nothing, each set has its top class, and the
            sets are larger than they need be.
        allow_empty: whether a set may be empty, as a share of the sets of sure predictions must be for an exact
            coverage. If not, it holds the top class.

    Raises:
        ValueError: alpha outside (0, 1); in ``fit``, soft targets, or logits that are not finite; logits with one
            class.

    When to use: if decisions need to know which classes are still possible. Fit it on samples that were used for
    nothing else, neither for training nor for a temperature: :math:`1 / \alpha - 1` at the least, and a thousand for a
    coverage that is within 1 % or so of :math:`1 - \alpha` in one fit.
    Cost: a sort of the classes of each row.
    Interactions: any calibration before it changes the sizes of the sets, not the coverage. To use one, pass the
    logarithms of its probabilities. A row with a NaN or an infinite logit gives a set of all classes; a logit of -inf
    is a class of probability 0.

    Example:
        >>> sets = APS(alpha=0.5, randomized=False)
        >>> logits = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.1, 0.8, 0.1]]).log()
        >>> sets.fit(logits, torch.tensor([1, 0, 1]))
        >>> sets(logits)
        tensor([[ True, False, False],
                [ True, False, False],
                [False,  True, False]])

    Paper: Romano, Sesia and Candès, Classification with Valid and Adaptive Coverage, NeurIPS 2020,
    https://arxiv.org/abs/2006.02544.

    Differs from the authors' code: empty sets are allowed, as in the paper's algorithm; equal scores count as at most
    the threshold.
    """

    family = "uncertainty"
    by_process = "each process draws for its own rows"

    threshold: Tensor

    def __init__(self, *, alpha: float = 0.1, randomized: bool = True, allow_empty: bool = True) -> None:
        super().__init__()
        check_alpha(alpha)
        self.alpha = alpha
        self.randomized = randomized
        self.allow_empty = allow_empty
        self.register_buffer("threshold", torch.full((), torch.inf, dtype=torch.float64))

    def fit(self, logits: Tensor, target: Tensor, generator: torch.Generator | None = None) -> None:
        """Fit the threshold to (N, C) logits and (N,) classes."""
        check_rows(logits, target)
        scores = self._scores(logits.detach(), generator)
        own = scores.gather(1, target.long()[:, None]).squeeze(1)
        self.threshold.copy_(conformal_quantile(own, alpha=self.alpha))

    def forward(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, C) logits -> (N, C) bool: which classes are in the set of each row."""
        self.check_logits(logits)
        scores = self._scores(logits, generator)
        # A score that is NaN is not above the threshold, so its class stays in the set.
        sets = ~(scores > self.threshold.to(scores.device, scores.dtype))
        return sets if self.allow_empty else sets | (scores == scores.amin(1, keepdim=True))

    def _scores(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        dtype = torch.float32 if logits.device.type == "mps" else torch.float64
        u = torch.zeros(len(logits), dtype=dtype)
        if self.randomized:
            u.uniform_(generator=generator)
        return self._score(logits.to(dtype).softmax(1), u.to(logits.device, non_blocking=True))

    def _score(self, p: Tensor, u: Tensor) -> Tensor:
        return aps_scores(p, u)
