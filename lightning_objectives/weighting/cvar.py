"""Conditional value at risk within the batch."""

from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes
from lightning_objectives.weighting._ranks import weights_by_rank


def cvar_weights(losses: Tensor, *, share: float = 0.5) -> Tensor:
    r"""Compute weights that are equal for the highest losses of the batch, and 0 for the others.

    .. math::
        \max_w \frac{1}{N} \sum_i w_i \ell_i \quad \text{for} \quad 0 \le w_i \le \frac{1}{\alpha}, \quad
        \frac{1}{N} \sum_i w_i = 1

    If :math:`\alpha N` is no whole number, the sample at the threshold has the rest of the weight. Equal losses there
    share it.

    Args:
        losses: (N,) the losses of the samples of the whole batch, across all ranks.
        share: :math:`\alpha \in (0, 1]`, the share of the samples that is kept. 1 keeps all with the weight 1. Up to
            :math:`1 / N` it is the highest loss alone.

    Returns:
        (N,) weights >= 0 with mean 1, float32 at least, without gradient. A non-finite loss gets the weight 0, and the
        others have mean 1 among themselves. If no loss is finite, every weight is 1.

    Raises:
        ValueError: losses of another shape, or a ``share`` outside (0, 1].

    Example:
        >>> import torch
        >>> cvar_weights(torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0]), share=0.5)  # 2.5 of 5 samples
        tensor([0., 1., 0., 2., 2.])

    Paper: Fan et al., Learning with Average Top-k Loss, NeurIPS 2017, https://arxiv.org/abs/1705.08826; with
    :math:`\alpha N = k`. The risk is that of Rockafellar and Uryasev, Optimization of Conditional Value-at-Risk, 2000.

    Differs from finance: there :math:`\alpha` is often the share that is left out.
    """
    check_shapes(losses=losses)
    _check(share)
    return weights_by_rank(losses, lambda rank, count: (rank - (1 - share) * count).clamp_min(0) / share)


def _check(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(
            f"share={share} must be in (0, 1]; 1 keeps all samples, 0.1 the tenth with the highest losses."
        )


class CVaR(Weighting):
    r"""Trains on the samples with the highest losses alone, for a network that is good on its worst cases.

    The weights are those of :func:`cvar_weights`.

    Args:
        share: :math:`\alpha`, the share of the batch that is kept.

    Raises:
        ValueError: a ``share`` outside (0, 1].

    When to use: if the worst cases count, and labels are clean: with noisy labels the highest losses are those of the
    mislabelled samples. Use large batches: the mean over batches is below the risk of the whole data set.
    Cost: one all-gather and one sort of the losses.
    Interactions: the gradient is noisier, because it comes from fewer samples. The loss that the model logs is the
    weighted one; the unweighted loss is logged beside it.

    Example:
        >>> import torch
        >>> CVaR(share=0.25)(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        tensor([0., 0., 0., 4.])
    """

    exemplar = True
    function = staticmethod(cvar_weights)
    family = "worst cases"

    def __init__(self, *, share: float = 0.5) -> None:
        super().__init__()
        _check(share)
        self.share = share

    def active(self, *, step: int) -> bool:
        """Return False if all samples are kept: the criterion is then not touched."""
        return self.share < 1

    def forward(self, losses: Tensor) -> Tensor:
        """(N,) losses -> (N,) weights."""
        return cvar_weights(losses, share=self.share)
