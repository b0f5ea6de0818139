"""Neural collapse."""

import torch
from torch import Tensor, nn

from lightning_objectives.metrics._sums import Sums
from lightning_objectives.shapes import check_classes, check_shapes, forms

_FORMS = {
    "features": forms("(N, D) float"),
    "logits": forms("(N, C) float"),
    "target": forms("(N,) int"),
    "weight": forms("(C, D) float"),
}
_NAMES = ("nc1", "nc2_norms", "nc2_angles", "nc3", "nc4")


def neural_collapse(features: Tensor, logits: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
    r"""Compute how far features and head are from the state in which each class is one point of a regular simplex.

    With the mean :math:`\mu_c` of the features of each class, the mean of these means :math:`\mu_G`, and
    :math:`m_c = \mu_c - \mu_G`, the columns of :math:`M`,

    .. math::
        \begin{aligned}
        \text{nc1} &= \tfrac{1}{C} \operatorname{tr}(\Sigma_W \Sigma_B^+), \quad
        \Sigma_W = \tfrac{1}{N} \textstyle\sum_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^\top, \quad
        \Sigma_B = \tfrac{1}{C} M M^\top \\
        \text{nc2\_norms} &= \operatorname{std}_c \lVert m_c \rVert / \operatorname{mean}_c \lVert m_c \rVert \\
        \text{nc2\_angles} &= \operatorname{mean}_{c \ne d} |\cos(m_c, m_d) + \tfrac{1}{C - 1}| \\
        \text{nc3} &= \lVert W^\top / \lVert W \rVert - M / \lVert M \rVert \rVert^2 \\
        \text{nc4} &= \tfrac{1}{N}\, |\{i : \arg\max_c z_{ic} \ne \arg\min_c \lVert h_i - \mu_c \rVert\}|
        \end{aligned}

    The standard deviation is the unbiased one. All are 0 in a complete collapse.

    Args:
        features: (N, D) :math:`h`, in any float type; computed in float64.
        logits: (N, C) :math:`z`.
        target: (N,) int classes in [0, C).
        weight: (C, D) :math:`W`, that of the head.

    Returns:
        ``nc1``, ``nc2_norms``, ``nc2_angles``, ``nc3`` and ``nc4``, () float32 each. All are NaN if a class has no row,
        if all means are equal, or if features are not finite.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or targets that are no class.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [-3.0, 0.0]])
        >>> weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> values = neural_collapse(features, features @ weight.T, torch.tensor([0, 0, 1, 1]), weight)
        >>> values["nc1"], values["nc3"]  # 1 / 4 / 2: the variances 1 and 4; the weights point at the means
        (tensor(0.1250), tensor(0.))

    Paper: Papyan, Han and Donoho, Prevalence of Neural Collapse During the Terminal Phase of Deep Learning Training,
    PNAS 2020, https://arxiv.org/abs/2008.08186.

    Differs from the paper: nc1 is the paper's, which its code does not divide by C. Not checked at the source: the
    unbiased standard deviation, and the mean of the class means as the centre if classes have unequal numbers of rows.
    """
    check_shapes(_FORMS, features=features, logits=logits, target=target, weight=weight)
    check_classes(logits)
    h, w, y = features.detach().cpu().double(), weight.detach().cpu().double(), target.cpu().long()
    return {name: value.to(features.device) for name, value in _collapse(h, logits.argmax(1).cpu(), y, w).items()}


def _collapse(h: Tensor, predicted: Tensor, y: Tensor, w: Tensor) -> dict[str, Tensor]:
    classes = len(w)
    if not ((y >= 0) & (y < classes)).all():
        raise ValueError(
            f"target has values from {int(y.min())} to {int(y.max())}: classes must lie in [0, {classes})."
        )
    counts = torch.bincount(y, minlength=classes)
    means = torch.zeros_like(w).index_add(0, y, h) / counts[:, None]
    m = means - means.mean(0)
    norms = m.norm(dim=1)
    if not (m.isfinite().all() and h.isfinite().all() and norms.any()):
        return {name: torch.full((), torch.nan) for name in _NAMES}
    # (MMᵀ)⁺ = M (MᵀM)⁺² Mᵀ, so that no matrix has D x D numbers. MᵀM has the rank C - 1 at most.
    inside = (h - means[y]) @ m.T
    inverse = torch.linalg.pinv(m @ m.T, rtol=1e-10, hermitian=True)
    cosines = (m @ m.T) / (norms[:, None] * norms)
    beside = ~torch.eye(classes, dtype=torch.bool)
    values = (
        (inverse @ inverse @ (inside.T @ inside)).trace() / len(h),
        norms.std() / norms.mean(),
        (cosines + 1 / (classes - 1))[beside].abs().mean(),
        (w / w.norm() - m / m.norm()).square().sum(),
        (predicted != torch.cdist(h, means).argmin(1)).double().mean(),
    )
    return {name: value.float() for name, value in zip(_NAMES, values)}


class NeuralCollapse(Sums):
    """Measures how far the last features have collapsed to one point for each class, as after long training.

    The values are those of :func:`neural_collapse` over all rows of all batches and ranks.

    Args:
        ignore_index: rows with this class index do not count; None for none.

    Raises:
        ValueError: in ``update``, shapes that do not fit, fewer than two classes, or a head without a weight (C, D); in
            ``compute``, targets that are no class.

    Shapes of ``update``: features (N, D), logits (N, C), head a module with the weight (C, D), and target (N,) int.
    ``LogMetrics`` passes them.

    When to use: on the training set, to see how far a training has gone beyond fitting it; on other data, to see how
    far the features of the classes come apart there.
    Cost: 4 D + 16 bytes a row, in memory until the end of the epoch: 100 MB for 50,000 rows of 512 features. Then one
    distance of each row to each class, on the CPU.
    Interactions: mixup, label smoothing and weight decay change where the collapse goes. With unequal classes the means
    do not become a regular simplex. With fewer features than C - 1 they cannot.

    Example:
        >>> head = torch.nn.Linear(2, 2, bias=False)
        >>> head.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> metric = NeuralCollapse()
        >>> for features, target in (([[1.0, 0.0], [-1.0, 0.0]], [0, 1]), ([[3.0, 0.0], [-3.0, 0.0]], [0, 1])):
        ...     features = torch.tensor(features)
        ...     metric.update(features, head(features), head, torch.tensor(target))
        >>> metric.compute()["nc1"]
        tensor(0.1250)

    Paper: Papyan, Han and Donoho, Prevalence of Neural Collapse During the Terminal Phase of Deep Learning Training,
    PNAS 2020, https://arxiv.org/abs/2008.08186.
    """

    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, *, ignore_index: int | None = -100) -> None:
        super().__init__(settings=str(ignore_index))
        self.ignore_index = ignore_index
        for name in ("features", "predicted", "target"):
            self.add_state(name + self._suffix, [], dist_reduce_fx="cat")
        # All ranks have the same weight, so the maximum is that weight to the bit, also beside a rank without a batch.
        self.add_state("weight" + self._suffix, torch.tensor(-torch.inf), dist_reduce_fx="max")

    def update(self, features: Tensor, logits: Tensor, head: nn.Module, target: Tensor) -> None:
        """Add the rows of a batch."""
        weight = getattr(head, "weight", None)
        if not isinstance(weight, Tensor):
            raise ValueError(
                f"head is a {type(head).__name__} without a weight, but nc3 compares the means with it: pass the last "
                "linear layer."
            )
        check_shapes(_FORMS, features=features, logits=logits, target=target, weight=weight)
        check_classes(logits)
        rows = {"features": features.detach().float(), "predicted": logits.argmax(1), "target": target.long()}
        for name, value in rows.items():
            getattr(self, name + self._suffix).append(value)
        setattr(self, "weight" + self._suffix, weight.detach().float().clone())

    def compute(self) -> dict[str, Tensor]:
        """The five values over all rows that count, () float32 each."""
        h, predicted, y = (self._joined(name).cpu() for name in ("features", "predicted", "target"))
        if not len(h):
            return {name: torch.full((), torch.nan, device=self.device) for name in _NAMES}
        kept = torch.ones_like(y, dtype=torch.bool) if self.ignore_index is None else y != self.ignore_index
        values = _collapse(h[kept].double(), predicted[kept], y[kept], self._sum("weight").cpu().double())
        return {name: value.to(self.device) for name, value in values.items()}
