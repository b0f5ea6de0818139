"""Area under the curve of risk and coverage."""

import torch
from torch import Tensor

from lightning_objectives.metrics._rows import check_pairs, probabilities
from lightning_objectives.metrics._sums import SumMetric
from lightning_objectives.metrics.ood_detection import ood_scores


def aurc(preds: Tensor, target: Tensor, *, excess: bool = False, from_logits: bool = True) -> Tensor:
    r"""Compute the mean error of the most confident rows, on average over how many of them are kept.

    .. math::
        \operatorname{AURC} = \frac{1}{N} \sum_{k=1}^N \frac{1}{k} \sum_{i \le k} e_i

    with the errors :math:`e_i` (0 or 1) in the order of falling confidence :math:`\max_c p_c`. Rows of equal confidence
    count with their mean error, which is the mean over all their orders. The excess is what is above the value of the
    best order, all right rows first.

    Args:
        preds: (N, C) logits or probabilities :math:`p`. The confidences of logits are computed in float64, where those
            near 1 stay apart.
        target: (N,) class indices, or (N, C) float class probabilities: the error of a row is then the target's mass
            beside the predicted class.
        excess: whether to subtract the value of the best order (E-AURC).
        from_logits: whether ``preds`` are logits or probabilities.

    Returns:
        () float32 in [0, 1]; NaN without rows or with NaN predictions.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> preds = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> aurc(preds, torch.tensor([0, 1, 1]), from_logits=False)  # (0 + 1/2 + 1/3) / 3
        tensor(0.2778)
        >>> aurc(preds, torch.tensor([0, 1, 1]), from_logits=False, excess=True)  # less (0 + 0 + 1/3) / 3
        tensor(0.1667)

    Paper: Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, ICLR 2019,
    https://arxiv.org/abs/1805.08206.
    """
    check_pairs(preds, target)
    return _area(*_scores_and_errors(preds, target, from_logits=from_logits), excess=excess)


def _scores_and_errors(preds: Tensor, target: Tensor, *, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Scores that fall with the confidence, and errors; (N,) each."""
    p = probabilities(preds.detach(), from_logits=from_logits)
    confidence, predicted = p.max(1, keepdim=True)
    if target.is_floating_point():
        errors = 1 - target.gather(1, predicted).squeeze(1)
    else:
        errors = (predicted.squeeze(1) != target).to(p.dtype)
    scores = ood_scores(preds) if from_logits and p.shape[1] > 1 else -confidence.squeeze(1)
    return scores.float(), errors.float()


def _area(scores: Tensor, errors: Tensor, *, excess: bool) -> Tensor:
    if not len(scores) or scores.isnan().any():
        return torch.full((), torch.nan, device=scores.device)
    # On the CPU: a cumulative sum is not deterministic on every other device.
    errors = errors.cpu().double()
    _, group, counts = scores.cpu().unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]  # torch
    means = torch.zeros(len(counts), dtype=errors.dtype).index_add(0, group, errors) / counts
    area = _mean_risk(means.repeat_interleave(counts))
    return (area - _mean_risk(errors.sort().values) if excess else area).float().to(scores.device)


def _mean_risk(errors: Tensor) -> Tensor:
    return (errors.cumsum(0) / torch.arange(1, len(errors) + 1)).mean()


class AURC(SumMetric):
    r"""Measures whether confidence tells right predictions from wrong ones, if you may refuse the least confident.

    The value is that of :func:`aurc` over all rows of all batches and ranks.

    Args:
        excess: whether to subtract the value of the best order (E-AURC), which leaves what better confidences could
            gain.
        from_logits: whether predictions are logits or probabilities; never guessed from their range.
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: in ``update``, if shapes do not fit; in ``compute``, if class indices, probabilities or soft targets
            are invalid.

    Shapes of ``update``: preds (N, C, ...) and target (N, ...) int or (N, C, ...) float, where every position is a row.
    For two classes preds may be (N,) or (N, 1, ...), with the second class's logit or probability.

    When to use: to compare confidences for a system that passes doubtful cases on. It looks at their order alone;
    whether they are true is what ``CalibrationError`` measures.
    Cost: 8 bytes a row, in memory until the end of the epoch, and a sort then.
    Interactions: without ``excess`` it falls with the error rate too, so compare networks of equal accuracy, or use the
    excess. A temperature above 0 changes the confidences of several classes, and so their order.

    Example:
        >>> metric = AURC(from_logits=False)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[0.3, 0.7]]), torch.tensor([1]))
        >>> metric.compute()  # (0 + 1/2 + 1/3) / 3
        tensor(0.2778)

    Paper: Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, ICLR 2019,
    https://arxiv.org/abs/1805.08206.

    Differs from the paper: equal confidences count with their mean error; soft targets; the best order's value is the
    sum itself. Not checked at the source: that the paper approximates it by :math:`r + (1 - r) \log(1 - r)`, with the
    error rate r, which differs for few rows.
    """

    function = staticmethod(aurc)
    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, excess: bool = False, from_logits: bool = True, ignore_index: int | None = -100) -> None:
        # The area and its excess may share the rows.
        super().__init__(from_logits=from_logits, ignore_index=ignore_index)
        self.excess = excess
        for name in ("scores", "errors"):
            self.add_state(name + self._suffix, [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the rows of a batch; shapes as in the class. Never waits for the device."""
        rows = self._rows(preds, target)
        scores, errors = _scores_and_errors(rows.preds, rows.target, from_logits=self.from_logits)
        self._add_rows(rows)
        getattr(self, "scores" + self._suffix).append(scores)
        # Picking rows would wait for the device, so those that do not count are marked.
        getattr(self, "errors" + self._suffix).append(torch.where(rows.kept, errors, -1.0))

    def compute(self) -> Tensor:
        """The area, or the excess, of all rows that count, () float32."""
        self._check_rows()
        scores, errors = (self._joined(name) for name in ("scores", "errors"))
        counted = errors >= 0
        return _area(scores[counted], errors[counted], excess=self.excess)
