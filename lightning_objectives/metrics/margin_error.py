"""Margin error, for soft targets too."""

import math

import torch
from torch import Tensor

from lightning_objectives.metrics._rows import check_pairs
from lightning_objectives.metrics._sums import MeanMetric
from lightning_objectives.shapes import check_classes


def margin_error(preds: Tensor, target: Tensor, *, margin: float = 0.0) -> Tensor:
    r"""Compute whether the target leads all other classes by no more than a margin.

    .. math::
        e = \mathbf{1}\left[z_y - \max_{c \ne y} z_c \le \gamma\right]

    with :math:`z` the predictions and :math:`y` the target.

    Args:
        preds: (N, C) scores: logits or probabilities, in any float type; compared in float32 or better.
        target: (N,) class indices, or (N, C) float class probabilities: then each class counts with its share.
        margin: :math:`\gamma \ge 0`; 0 gives errors, and a tie for the first place is one.

    Returns:
        (N,) float values in [0, 1]: for class indices 1 if the lead is at most the margin, else 0. NaN for a row with a
        NaN.

    Raises:
        ValueError: a margin that is negative or not finite, one class, or shapes that do not fit.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0, 0.0], [3.0, 2.5, 0.0], [1.0, 1.0, 0.0]])
        >>> target = torch.tensor([0, 0, 0])  # leads of 2, 0.5 and 0
        >>> margin_error(logits, target, margin=1.0), margin_error(logits, target)
        (tensor([0., 1., 1.]), tensor([0., 0., 1.]))
        >>> margin_error(logits[:1], torch.tensor([[0.75, 0.25, 0.0]]))
        tensor([0.2500])

    Paper: Bartlett, Foster and Telgarsky, Spectrally-normalized Margin Bounds for Neural Networks, NeurIPS 2017,
    theorem 1.1, https://arxiv.org/abs/1706.08498.
    """
    check_pairs(preds, target)
    check_classes(preds, "preds")
    _check(margin)
    preds = preds if preds.dtype == torch.float64 else preds.float()
    # The best rival of the first class is the second. Other classes do not lead, so their difference is 0 or less.
    second = preds.topk(2, dim=1).values[:, 1:]
    # Two infinite scores differ by NaN, which is not above the margin: a tie.
    errors = (~(preds - second > margin)).to(preds.dtype)
    if target.is_floating_point():
        values = (errors * target).sum(1)
    else:
        values = errors.gather(1, target.long()[:, None]).squeeze(1)
    return torch.where(preds.isnan().any(1), torch.nan, values)


def _check(margin: float) -> None:
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin={margin} must be >= 0 and finite; 0 gives the share of errors, ties among them.")


class MarginError(MeanMetric):
    r"""Measures how often the target does not lead all other classes by more than a margin.

    It is the mean of :func:`margin_error` over all rows. Over all margins it is the distribution of the leads, which
    shows more of a network that makes no error on its training data.

    Args:
        margin: :math:`\gamma \ge 0`, in the units of the predictions; 0 gives the share of errors, ties among them.
        from_logits: whether predictions are logits or probabilities. The lead is that of what is passed: from
            probabilities it is at most 1.
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: a margin that is negative or not finite; in ``update``, if shapes do not fit; in ``compute``, if
            class indices, probabilities or soft targets are invalid.

    Shapes of ``update``: preds (N, C, ...) and target (N, ...) int or (N, C, ...) float, where every position is a row.
    For two classes preds may be (N,) or (N, 1, ...), with the second class's logit or probability.

    When to use: to see whether training still moves rows away from the boundary once it makes no errors.
    Cost: the two best classes of each row; three numbers of state, sums in float64 (float32 on devices without it).
    Interactions: leads of logits grow with their scale, so a temperature, a longer training or another network needs
    another margin. To compare networks, the paper divides the lead by a norm of the weights: pass the margin times it.

    Example:
        >>> metric = MarginError(margin=1.0)
        >>> metric.update(torch.tensor([[3.0, 1.0, 0.0], [3.0, 2.5, 0.0]]), torch.tensor([0, 0]))
        >>> metric.compute()
        tensor(0.5000)

    Paper: Koltchinskii and Panchenko, Empirical Margin Distributions and Bounding the Generalization Error of Combined
    Classifiers, Annals of Statistics 2002, https://arxiv.org/abs/math/0405343; Bartlett, Foster and Telgarsky,
    Spectrally-normalized Margin Bounds for Neural Networks, NeurIPS 2017, theorem 1.1,
    https://arxiv.org/abs/1706.08498: a lead that equals the margin counts, and so does a tie at 0. Not checked at the
    source: the text of the first paper beyond its abstract.

    Differs from the paper: soft targets count each class with its share; no norm of the weights.
    """

    function = staticmethod(margin_error)
    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, margin: float = 0.0, from_logits: bool = True, ignore_index: int | None = -100) -> None:
        _check(margin)
        super().__init__(from_logits=from_logits, ignore_index=ignore_index, settings=f"{margin}")
        self.margin = margin

    def values(self, preds: Tensor, target: Tensor) -> Tensor:
        """(R, C) predictions and their target -> (R,) values."""
        return margin_error(preds, target, margin=self.margin)
