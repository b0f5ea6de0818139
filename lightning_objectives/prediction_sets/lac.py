"""Least ambiguous prediction sets."""

import torch
from torch import Tensor

from lightning_objectives.kinds import SetPredictor
from lightning_objectives.prediction_sets._quantile import check_alpha, check_rows, conformal_quantile
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"p": forms("(N, C) float")}


def lac_scores(p: Tensor) -> Tensor:
    r"""Compute how improbable each class is.

    .. math::
        s_c = 1 - p_c

    Args:
        p: (N, C) probabilities.

    Returns:
        (N, C) scores, in the type of the probabilities.

    Raises:
        ValueError: probabilities that are not (N, C) float.

    Example:
        >>> lac_scores(torch.tensor([[0.25, 0.75]]))
        tensor([[0.7500, 0.2500]])

    Paper: Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers with Bounded Error Levels, JASA 2019,
    https://arxiv.org/abs/1609.00451.
    """
    check_shapes(_FORMS, p=p)
    return 1 - p


class LAC(SetPredictor):
    r"""Predicts the smallest sets of classes that hold the target of a chosen share of new samples.

    ``fit`` takes the :func:`~lightning_objectives.prediction_sets.conformal_quantile` of the scores
    (:func:`lac_scores`) of the targets. A set holds the classes whose score is at most that threshold: one smallest
    probability for all rows. If samples are exchangeable, as independent draws are, the probability that it holds the
    target is at least :math:`1 - \alpha`, whatever the network. That is a mean over all samples and all fits, and no
    promise for one class or one group. If the probabilities are the true ones, no other sets of this coverage are
    smaller in the mean.

    Args:
        alpha: :math:`\alpha`, the share of targets that may lie outside.
        allow_empty: whether a set may be empty, which it is if no class is probable enough. If not, it holds the top
            class; the coverage is then greater or the same. With a threshold of :math:`1 - 1/C` or more, no set is
            empty.

    Raises:
        ValueError: alpha outside (0, 1); in ``fit``, soft targets, or logits that are not finite; logits with one
            class.

    When to use: if small sets matter more than that each kind of sample is covered alike: the sets of hard samples
    hold their target less often than those of easy ones. APS evens that out with larger sets. Fit it on samples that
    were used for nothing else, :math:`1 / \alpha - 1` at the least, and a thousand for a coverage that is within 1 % or
    so of :math:`1 - \alpha` in one fit.
    Cost: a softmax.
    Interactions: a calibration before it changes the sets, not the coverage. To use one, pass the logarithms of its
    probabilities. A row with a NaN or a logit of inf gives a set of all classes; a logit of -inf is a class of
    probability 0.

    Example:
        >>> sets = LAC(alpha=0.5)
        >>> logits = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.1, 0.8, 0.1]]).log()
        >>> sets.fit(logits, torch.tensor([1, 0, 1]))  # scores of 0.7, 0.6 and 0.2; the 2nd is 0.6
        >>> sets(logits)
        tensor([[ True, False, False],
                [ True,  True, False],
                [False,  True, False]])

    Paper: Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers with Bounded Error Levels, JASA 2019,
    https://arxiv.org/abs/1609.00451. The formula is that of MAPIE and TorchCP.

    Differs from the paper: one threshold for all classes, not one for each, which the paper has too. Not checked at the
    source: the paper's formulas, and whether the top class of an empty set is one of its two ways to fill it.
    """

    family = "uncertainty"

    threshold: Tensor

    def __init__(self, *, alpha: float = 0.1, allow_empty: bool = True) -> None:
        super().__init__()
        check_alpha(alpha)
        self.alpha = alpha
        self.allow_empty = allow_empty
        self.register_buffer("threshold", torch.full((), torch.inf, dtype=torch.float64))

    def fit(self, logits: Tensor, target: Tensor, generator: torch.Generator | None = None) -> None:
        """Fit the threshold to (N, C) logits and (N,) classes; nothing is drawn."""
        check_rows(logits, target)
        own = _scores(logits.detach()).gather(1, target.long()[:, None]).squeeze(1)
        self.threshold.copy_(conformal_quantile(own, alpha=self.alpha))

    def forward(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, C) logits -> (N, C) bool: which classes are in the set of each row; nothing is drawn."""
        self.check_logits(logits)
        scores = _scores(logits)
        # A score that is NaN is not above the threshold, so its class stays in the set.
        sets = ~(scores > self.threshold.to(scores.device, scores.dtype))
        return sets if self.allow_empty else sets | (scores == scores.amin(1, keepdim=True))


def _scores(logits: Tensor) -> Tensor:
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64
    return lac_scores(logits.to(dtype).softmax(1))
