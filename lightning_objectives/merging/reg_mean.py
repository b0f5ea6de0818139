"""RegMean: a merge whose linear layers give nearly what each network's own layers give on its own data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.kinds import Merge
from lightning_objectives.shapes import check_tensors

_ROUNDING = torch.finfo(torch.float32).eps
"""The relative error of the sums in a file of Gram matrices."""


def reg_mean_merge(weights: Sequence[Tensor], *, importance: Sequence[Tensor], alpha: float = 0.9) -> Tensor:
    r"""Compute the weight of a linear layer whose outputs are nearest to those of several layers on their own inputs.

    .. math::
        W^\top = \Big( \sum_k \tilde G_k \Big)^{-1} \sum_k \tilde G_k W_k^\top, \qquad
        \tilde G = \alpha \, G + (1 - \alpha) \operatorname{diag} G

    With :math:`\alpha = 1` and :math:`G_k = X_k^\top X_k` it minimizes
    :math:`\sum_k \lVert X_k W^\top - X_k W_k^\top \rVert^2` over all weights W.

    Args:
        weights: K tensors :math:`W_k` (out, in), in any real float type.
        importance: K Gram matrices :math:`G_k` (in, in) of the layers' inputs, symmetric. Their scale is the say of
            each network: divide by the number of rows, as ``GramMatrices`` does, to give all the same.
        alpha: in [0, 1], how much of the products of two different inputs counts. 0 weighs each column of the weights
            by the mean square of its input. Below 1 the sum of the matrices can be inverted.

    Returns:
        (out, in), in float32 or wider. Columns of inputs that are 0 in all data are plain means; with
        :math:`\alpha = 1`, of several minima the one that is nearest to the plain mean, in units of the inputs.

    Raises:
        ValueError: shapes or numbers of tensors that do not fit; a matrix that is no Gram matrix; ``alpha`` out of
            range.

    Example:
        >>> weights = [torch.eye(2), torch.tensor([[0.0, 2.0], [1.0, -1.0]])]
        >>> grams = [torch.tensor([[2.0, 1.0], [1.0, 5.0]]), torch.tensor([[4.0, 2.0], [2.0, 2.0]])]
        >>> reg_mean_merge(weights, importance=grams, alpha=1.0)
        tensor([[0.8182, 0.3636],
                [0.1818, 0.6364]])

    Paper: Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023,
    https://arxiv.org/abs/2212.09849; checked against the authors' code.

    Differs from the paper's code: the code inverts the sum, which fails if an input is 0 in all data. Its default is
    :math:`\alpha = 1`, and its settings for language models have 0.9 or 0.1. It can weigh the networks; scale the
    matrices for that. It also merges the transposed layers of GPT-2; here these are plain means.
    """
    _check(alpha)
    if not weights:
        raise ValueError("weights=[] hold no network to merge: give one tensor for each.")
    check_tensors([weights[0]] * len(weights), weights=weights)
    _check_grams(weights, importance)
    wide = torch.promote_types(weights[-1].dtype, torch.float32)
    newest = weights[-1].double()
    total = torch.zeros_like(importance[0], dtype=torch.float64)
    mean, pulled = torch.zeros_like(newest), torch.zeros_like(newest)
    # Opposites of the changes from the newest, so that what is equal in all files stays equal to the bit.
    for weight, gram in zip(weights, importance):
        scaled = gram.double() * alpha
        scaled.diagonal().copy_(gram.diagonal())
        pull = newest - weight
        total += scaled
        mean += pull / len(weights)
        pulled += pull @ scaled
    pull = mean - _solved(total, mean @ total - pulled, alpha)
    return torch.where(pull == 0, newest, newest - pull).to(wide)


def _check(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be in [0, 1]: the part of the products of different inputs that counts.")


def _check_grams(weights: Sequence[Tensor], importance: Sequence[Tensor]) -> None:
    shape = weights[0].shape
    if len(shape) != 2 or weights[0].is_complex() or len(importance) != len(weights):
        raise ValueError(
            f"{len(weights)} weights of the shape {tuple(shape)} and {len(importance)} Gram matrices: RegMean merges "
            "real weights (out, in) of linear layers, each with one matrix (in, in)."
        )
    for place, gram in enumerate(importance):
        if gram.shape != (shape[1], shape[1]):
            raise ValueError(
                f"importance[{place}] of the shape {tuple(gram.shape)} is no Gram matrix of the inputs of a layer "
                f"{tuple(shape)}, which is {(shape[1], shape[1])}."
            )
        largest = float(gram.abs().max()) if gram.numel() else 0.0
        least = float(gram.diagonal().min()) if gram.numel() else 0.0
        skew = float((gram - gram.T).abs().max()) if gram.numel() else 0.0
        if not (least >= 0 and skew <= 1e-4 * largest < torch.inf):
            raise ValueError(
                f"importance[{place}] is no Gram matrix: it must be finite and symmetric, with a diagonal >= 0, but "
                f"has {least} there, and entries that differ by {skew} from their mirror images. Measure it with "
                "SurveyData(GramMatrices()); the file of another survey does not fit."
            )


def _solved(total: Tensor, right: Tensor, alpha: float) -> Tensor:
    """The x of x total = right, of the least norm in units of the inputs; 0 in columns of inputs that are always 0."""
    scale = total.diagonal().sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    unit = total * inverse[:, None] * inverse
    unit.diagonal().masked_fill_(scale == 0, 1.0)
    right = right * inverse
    if alpha < 1:  # The eigenvalues are at least 1 - alpha.
        factor, failed = torch.linalg.cholesky_ex(unit)
        if not failed:
            solved: Tensor = torch.cholesky_solve(right.T, factor)
            return solved.T * inverse
    pseudo_inverse: Tensor = torch.linalg.pinv(unit, hermitian=True, rtol=len(unit) * _ROUNDING)
    return right @ pseudo_inverse * inverse


class RegMean(Merge):
    """Merges fine-tuned networks so that each linear layer still gives on each network's data what it gave there.

    The weights of linear layers are those of :func:`reg_mean_merge`. All other tensors are plain means, as in the
    paper: biases, norms, embeddings, convolutions. The plan of the command ``merge`` lists them.

    Args:
        alpha: how much of the products of two different inputs counts, in [0, 1]; lower it if the merge is worse than
            the plain mean.

    Raises:
        ValueError: ``alpha`` is out of range.

    When to use: if networks of one start were trained on different tasks or data, and you can run each once over some
    of its data, without targets or gradients. Against :class:`FisherMerging` it also knows which inputs of a layer come
    together.
    Cost: one pass over the files. For each linear layer a system of equations of its inputs, in float64, whose time
    grows with the third power of their number. Memory: about six matrices (in, in) and five weights in float64.
    Interactions: it needs a file of Gram matrices for each network: ``SurveyData(GramMatrices(), path=...)`` writes
    it. Heads of different classes cannot be merged. Re-estimate the statistics of BatchNorm.

    Example:
        >>> weights, grams = [torch.zeros(1, 1), 4 * torch.ones(1, 1)], [3 * torch.ones(1, 1), torch.ones(1, 1)]
        >>> RegMean().tensor(weights, importance=grams)  # (3 · 0 + 1 · 4) / (3 + 1)
        tensor([[1.]])
    """

    function = staticmethod(reg_mean_merge)
    callback = ""  # A training has no Gram matrices of each of its snapshots.
    linear = False
    asks = ("importance",)
    every_importance = False

    def __init__(self, *, alpha: float = 0.9) -> None:
        _check(alpha)
        self.alpha = alpha

    def importance_shape(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """(in, in) for a weight (out, in)."""
        return (shape[1], shape[1]) if len(shape) == 2 else None

    def tensor(
        self,
        weights: Sequence[Tensor],
        *,
        base: Tensor | None = None,
        importance: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        statistics: Any = None,
    ) -> Tensor:
        """The merge of the weights of one linear layer."""
        if importance is None:
            raise ValueError("RegMean cannot merge without the Gram matrix of each layer's inputs: give importance=.")
        return reg_mean_merge(weights, importance=importance, alpha=self.alpha)
