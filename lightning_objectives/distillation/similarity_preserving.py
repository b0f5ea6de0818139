"""Similarity-preserving knowledge distillation."""

from torch import Tensor

from lightning_objectives.distillation._pairs import of_length_one, products, wide
from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_shapes


def similarity_preserving_loss(features: Tensor, teacher_features: Tensor) -> Tensor:
    r"""Compute how the similarities of each sample to the samples of the batch differ from those of the teacher.

    .. math::
        \ell_i = \frac{1}{N} \left\| \frac{F f_i}{\|F f_i\|} - \frac{G g_i}{\|G g_i\|} \right\|^2

    with F the (N, D) features of the student and :math:`f_i` its i-th row, and G, :math:`g_i` those of the teacher. The
    mean over the batch is :math:`\|\tilde G_S - \tilde G_T\|_F^2 / N^2` of the paper. The two networks may have
    different numbers of features.

    Args:
        features: (N, D) the student's, in any float type; computed in float32 or better.
        teacher_features: (N, D') the teacher's; no gradient flows to them.

    Returns:
        (N,) distances >= 0.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> student = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # similar to themselves alone: (1, 0) and (0, 1)
        >>> teacher = torch.tensor([[1.0], [2.0]])  # both (1, 2) / sqrt(5)
        >>> similarity_preserving_loss(student, teacher)  # 1 - 1 / sqrt(5), and 1 - 2 / sqrt(5)
        tensor([0.5528, 0.1056])

    Paper: Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, https://arxiv.org/abs/1907.09682.

    Differs from the paper: of the layers that the paper compares, this is the last one, the input of the head.
    """
    check_shapes(features=features, teacher_features=teacher_features)
    ours, theirs = (of_length_one(products(wide(rows))) for rows in (features, teacher_features.detach()))
    return (ours - theirs).square().mean(1)


class SimilarityPreserving(Distillation):
    r"""Trains a student to find the same samples of a batch similar as its teacher does.

    The distances are those of :func:`similarity_preserving_loss`. The features of both networks are the inputs of their
    heads, and may have different sizes.

    When to use: if teacher and student have features of different sizes, or no logits in common. The distances are
    small: comparisons of classifiers give them the weight 3000, as in ``Distill(SimilarityPreserving(), weight=3000)``.
    Cost: the teacher's forward pass; N · N · D for the products.
    Interactions: a rotation and a scale of the features change nothing, a shift does. Only the samples of one batch are
    compared, and one sample teaches nothing. Gradient accumulation does not join the batches. ``cache=`` of the
    callback keeps logits alone, so it does not work with this method.

    Example:
        >>> import torch
        >>> SimilarityPreserving()(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0, 2.0], [0.0, 4.0]]))
        tensor([0., 0.])
    """

    function = staticmethod(similarity_preserving_loss)
    coupled = "it compares the samples of the batch with each other"
    by_process = "each process compares the samples of its own batch"

    def forward(self, features: Tensor, teacher_features: Tensor) -> Tensor:
        """(N, D) and (N, D') features -> (N,) distances."""
        return similarity_preserving_loss(features, teacher_features)
