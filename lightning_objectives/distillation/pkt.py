"""Probabilistic knowledge transfer."""

from torch import Tensor

from lightning_objectives.distillation._pairs import of_length_one, products, wide
from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_shapes

_LEAST = 1e-7
"""What the authors' code adds to both probabilities before it takes the logarithm of their ratio."""


def pkt_loss(features: Tensor, teacher_features: Tensor) -> Tensor:
    r"""Compute the divergence between how probable the two networks find each sample as a neighbour of each other one.

    .. math::
        \ell_i = \frac{1}{N} \sum_j p_{ij} \log \frac{p_{ij} + \epsilon}{q_{ij} + \epsilon}, \qquad
        q_{ij} = \frac{1 + \cos(f_i, f_j)}{\sum_k 1 + \cos(f_i, f_k)}

    with f the student's features, p the same of the teacher's, and :math:`\epsilon = 10^{-7}`. The sums run over all
    samples of the batch, the sample itself too. The two networks may have different numbers of features.

    Args:
        features: (N, D) the student's, in any float type; computed in float32 or better.
        teacher_features: (N, D') the teacher's; no gradient flows to them.

    Returns:
        (N,) distances >= 0, up to rounding and :math:`\epsilon`.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # cosines 1 and 0: q = 2/3 and 1/3
        >>> teacher = torch.tensor([[1.0], [3.0]])  # cosines 1: p = 1/2 and 1/2
        >>> pkt_loss(student, teacher)  # 1/2 (1/2 log 3/4 + 1/2 log 3/2)
        tensor([0.0294, 0.0294])

    Paper: Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018,
    https://arxiv.org/abs/1803.10837.

    Differs from the paper: the authors' code takes the mean over the pairs, as this does; the paper takes their sum,
    which is N · N times as much.
    """
    check_shapes(features=features, teacher_features=teacher_features)
    q, p = (_neighbours(wide(rows)) for rows in (features, teacher_features.detach()))
    return (p * ((p + _LEAST) / (q + _LEAST)).log()).mean(1)


def _neighbours(features: Tensor) -> Tensor:
    # Rounding can put a cosine a little below -1.
    likeness = (1 + products(of_length_one(features))).clamp_min(0)
    return likeness / likeness.sum(1, keepdim=True)


class PKT(Distillation):
    r"""Trains a student to have the same neighbours among the samples of a batch as its teacher, by their directions.

    The distances are those of :func:`pkt_loss`. The features of both networks are the inputs of their heads, and may
    have different sizes.

    When to use: if teacher and student have features of different sizes, or no logits in common. The distances are
    tiny, because they are a mean over pairs: comparisons of classifiers give them the weight 30000, as in
    ``Distill(PKT(), weight=30000)``.
    Cost: the teacher's forward pass; N · N · D for the products.
    Interactions: a rotation of the features and a positive factor of each sample change nothing. Only the samples of
    one batch are compared: one sample teaches nothing. The distances shrink as 1 / N. Gradient accumulation does not
    join the batches. ``cache=`` of the callback keeps logits alone, so it does not work with this method.

    Example:
        >>> import torch
        >>> PKT()(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0, 3.0], [0.0, 5.0]]))
        tensor([0., 0.])
    """

    function = staticmethod(pkt_loss)
    coupled = "it compares the samples of the batch with each other"
    by_process = "each process compares the samples of its own batch"

    def forward(self, features: Tensor, teacher_features: Tensor) -> Tensor:
        """(N, D) and (N, D') features -> (N,) distances."""
        return pkt_loss(features, teacher_features)
