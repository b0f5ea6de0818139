"""Detection of samples from another distribution."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from lightning_objectives.metrics._sums import WITHOUT_FLOAT64, Sums
from lightning_objectives.shapes import check_classes, check_shapes, forms

Score = Literal["max_probability", "max_logit", "energy"]
_FORMS = {"loader": forms("(N,) int"), "positive": forms("(N,) float"), "negative": forms("(M,) float")}


def ood_scores(logits: Tensor, *, score: Score = "max_probability") -> Tensor:
    r"""Compute how much each sample looks like one of another distribution: higher is more.

    ``max_probability`` is :math:`\log(1 - \max_c p_c)`, which orders samples as :math:`-\max_c p_c` does, and keeps
    apart what float32 rounds to 1; ``max_logit`` is :math:`-\max_c z_c`; ``energy`` is
    :math:`-\log \sum_c \exp z_c`.

    Args:
        logits: (N, C) :math:`z`, in any float type; computed in float64.
        score: which of the three.

    Returns:
        (N,) float32.

    Raises:
        ValueError: logits that are not (N, C) with two classes or more, or an unknown score.

    Example:
        >>> z = torch.tensor([[2.0, 1.0, -1.0]])
        >>> (1 - ood_scores(z).exp()), ood_scores(z, score="energy")
        (tensor([0.7054]), tensor([-2.3490]))

    Paper: Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
    Networks, ICLR 2017, https://arxiv.org/abs/1610.02136; Liu et al., Energy-based Out-of-distribution Detection,
    NeurIPS 2020, https://arxiv.org/abs/2010.03759; Hendrycks et al., Scaling Out-of-Distribution Detection for
    Real-World Settings, ICML 2022, https://arxiv.org/abs/1911.11132.
    """
    check_shapes(logits=logits)
    check_classes(logits)
    _check(score)
    z = logits.detach().to(torch.float32 if logits.device.type in WITHOUT_FLOAT64 else torch.float64)
    if score == "energy":
        return -z.logsumexp(1).float()
    greatest, place = z.max(1, keepdim=True)
    if score == "max_logit":
        return -greatest.squeeze(1).float()
    return (z.scatter(1, place, -torch.inf).logsumexp(1) - z.logsumexp(1)).float()


def fpr_at_95_tpr(positive: Tensor, negative: Tensor) -> Tensor:
    """Compute the share of the negatives that are accepted where at least 95 % of the positives are.

    The threshold is the highest at which at least 95 % of the positives have a score that is not below it. All equal
    scores fall on one side.

    Args:
        positive: (N,) scores of the positives; higher is more positive.
        negative: (M,) scores of the negatives.

    Returns:
        () float32.

    Raises:
        ValueError: scores that are not (N,), or none.

    Example:
        >>> fpr_at_95_tpr(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([0.5, 0.1]))
        tensor(0.5000)

    Paper: Liang et al., Enhancing the Reliability of Out-of-distribution Image Detection in Neural Networks, ICLR 2018,
    https://arxiv.org/abs/1706.02690.
    """
    check_shapes(_FORMS, positive=positive, negative=negative)
    count = len(positive)
    if not count or not len(negative):
        raise ValueError(f"{count} positive and {len(negative)} negative scores: there must be one or more of each.")
    accepted = count - count // 20  # in whole numbers: 0.95 * count may exceed a whole number by its last bit
    threshold = positive.sort(descending=True).values[accepted - 1]
    return (negative >= threshold).float().mean()


def _check(score: str) -> None:
    if score not in ("max_probability", "max_logit", "energy"):
        raise ValueError(f"score={score!r} must be 'max_probability', 'max_logit' or 'energy'.")


class OODDetection(Sums):
    """Measures how well the network's own sureness tells samples of another distribution from those of its own.

    Pass two data loaders to ``validate``, ``test`` or ``fit``: one of usual samples, and one of other samples, which
    need no targets. The metric compares the scores (:func:`ood_scores`) of their rows: ``ood_auroc`` is the probability
    that a sample of the other distribution has the higher score, where a tie counts half; ``ood_fpr95`` is
    :func:`fpr_at_95_tpr`.

    Args:
        score: ``max_probability``, ``max_logit`` or ``energy``; the last two need logits, and no log-probabilities.
        positive: which samples are the positives of ``ood_fpr95``: ``in``, as in most papers on energies, or ``out``,
            as in those on outlier exposure. The AUROC is the same for both.
        id_loader: number of the loader of usual samples.
        ood_loader: number of the loader of samples from another distribution. Rows of other loaders do not count.

    Raises:
        ValueError: an unknown score or positive, or one loader for both; in ``update``, shapes that do not fit; in
            ``compute``, if a loader has no rows, scores are NaN, or the energies are those of log-probabilities.

    Shapes of ``update``: logits (N, C), and loader (N,) int, the number of the data loader of each row.

    When to use: if inputs of other kinds will come in use. Choose the other distribution near to what will come; an
    easy one tells little.
    Cost: 8 bytes a row, in memory until the end of the epoch, and a sort then.
    Interactions: label smoothing and mixup usually make ``max_probability`` worse.

    Example:
        >>> metric = OODDetection()
        >>> metric.update(torch.tensor([[4.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]))
        >>> metric.update(torch.tensor([[1.0, 0.0], [3.5, 0.0]]), torch.tensor([1, 1]))
        >>> metric.compute()
        {'ood_auroc': tensor(0.7500), 'ood_fpr95': tensor(0.5000)}

    Paper: Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
    Networks, ICLR 2017, https://arxiv.org/abs/1610.02136.
    """

    is_differentiable = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(
        self,
        *,
        score: Score = "max_probability",
        positive: Literal["in", "out"] = "in",
        id_loader: int = 0,
        ood_loader: int = 1,
    ) -> None:
        _check(score)
        if positive not in ("in", "out"):
            raise ValueError(f"positive={positive!r} must be 'in' or 'out'.")
        if id_loader == ood_loader:
            raise ValueError(f"id_loader and ood_loader are both {id_loader}: name two loaders.")
        super().__init__(settings=f"{score}_{positive}_{id_loader}_{ood_loader}")
        self.score: Score = score
        self.positive: Literal["in", "out"] = positive
        self.id_loader = id_loader
        self.ood_loader = ood_loader
        for name in ("scores", "loader"):
            self.add_state(name + self._suffix, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, loader: Tensor) -> None:
        """Add the rows of a batch."""
        check_shapes(_FORMS, logits=logits, loader=loader)
        getattr(self, "scores" + self._suffix).append(ood_scores(logits, score=self.score))
        getattr(self, "loader" + self._suffix).append(loader.int())

    def compute(self) -> dict[str, Tensor]:
        """``ood_auroc`` and ``ood_fpr95``, () float32 each."""
        scores, loader = (self._joined(name) for name in ("scores", "loader"))
        inside, outside = scores[loader == self.id_loader], scores[loader == self.ood_loader]
        self._check_scores(inside, outside)
        scores = torch.cat([inside, outside])
        label = torch.arange(len(scores), device=scores.device) >= len(inside)
        # By their ranks, because torchmetrics would take the sigmoid of scores outside [0, 1], which makes ties.
        rank = scores.unique(return_inverse=True)[1].double()  # type: ignore[no-untyped-call]  # torch
        auroc = binary_auroc(rank / rank.amax().clamp_min(1), label.int())
        pair = (-inside, -outside) if self.positive == "in" else (outside, inside)
        return {"ood_auroc": auroc.float(), "ood_fpr95": fpr_at_95_tpr(*pair)}

    def _check_scores(self, inside: Tensor, outside: Tensor) -> None:
        if not len(inside) or not len(outside):
            raise ValueError(
                f"OODDetection got {len(inside)} rows of loader {self.id_loader} and {len(outside)} of loader "
                f"{self.ood_loader}, but needs some of both: pass two loaders, [usual, other], or say id_loader= and "
                "ood_loader=."
            )
        bad = int(inside.isnan().sum() + outside.isnan().sum())
        if bad:
            raise ValueError(f"{bad} of {len(inside) + len(outside)} rows have logits that are NaN: mend the network.")
        if self.score == "energy" and bool(torch.cat([inside, outside]).abs().amax() < 1e-3):
            raise ValueError(
                "All energies are 0, so the logits are log-probabilities, which have lost their energies. Use "
                "score='max_probability', or compare logits by cross_entropy in the evaluation step."
            )
