"""Edit-invariant sequence loss."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._regions import check_places
from lightning_objectives.losses._targets import wide
from lightning_objectives.shapes import check_classes

_LEAST = -20.0
"""Log-probabilities below it are raised to it, and have no gradient: one token must not outweigh its n-gram."""


def edit_invariant_sequence_loss(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    *,
    ngrams: Sequence[int] = (2, 3, 4),
    noise: bool = True,
) -> Tensor:
    r"""Compute how improbable the target's n-grams are, wherever in the output they stand.

    .. math::
        \ell = -\frac1{|\mathcal N|} \sum_{n \in \mathcal N} \frac1{T - n + 1} \sum_j \sum_i q_{ij} S_{ij}, \qquad
        S_{ij} = \frac1n \sum_{k < n} \log p_{i + k}(y_{j + k}), \qquad
        q_{\cdot j} = \operatorname{softmax}(S_{\cdot j} + g_{\cdot j})

    with :math:`S_{ij}` the mean log-probability of the n-gram at j of the target, if the output has it at i, and g
    Gumbel noise. An n of the whole sequence or more has one place, and gives cross entropy.

    Args:
        logits: (N, C, T) with C >= 2; (N, C) are sequences of one token, and the positions of (N, C, ...) are read in
            their order. Computed in float32 or better.
        target: (N, T) int tokens, or (N, C, T) float probabilities.
        mask: (N, T) bool, the positions that count; None for all. An n-gram counts if all of its positions do, and the
            length of a sequence is the number of positions that count.
        generator: where the noise is drawn from; None for the global stream.
        ngrams: the sizes :math:`\mathcal N`, 1 or more each. A sequence shorter than n counts as a whole.
        noise: whether the places are chosen with noise; without it q is a plain softmax.

    Returns:
        (N,) losses in [0, 20]; 0 for a sequence without a position that counts.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or no or bad sizes.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]])  # it says 0 1 2
        >>> late = torch.tensor([[2, 0, 1]])  # the same with the last token first
        >>> [edit_invariant_sequence_loss(logits, late, ngrams=(n,), noise=False) for n in (1, 3)]
        [tensor([0.0025]), tensor([9.0002])]

    Paper: Liu et al., Don't Take It Literally: An Edit-Invariant Sequence Loss for Text Generation, NAACL 2022,
    https://arxiv.org/abs/2106.15078. The formula is that of the authors' code. Not checked at the source: the paper's
    equations.

    Differs from the authors' code: padding does not count, and does not change the loss of a sequence. Sizes that are
    counted from the end of the longest sequence, such as -1, are not known.
    """
    ngrams = _check(ngrams)
    check_places(logits, target, mask)
    check_classes(logits)
    places = torch.ones_like(logits[:, 0], dtype=torch.bool) if mask is None else mask
    logits, places = wide(logits)[..., None].flatten(2), places[:, None].flatten(1)
    fits = _fits(logits, target, places)
    of_all = _mean(fits.diagonal(dim1=1, dim2=2), places)
    losses = [-_of_size(n, fits, places, of_all, generator, noise) for n in ngrams]
    return torch.stack(losses).mean(0)


def _fits(logits: Tensor, target: Tensor, places: Tensor) -> Tensor:
    """(N, T, T) the log-probability of token j of the target at position i of the output."""
    total = logits.logsumexp(1)
    if target.is_floating_point():
        # 0 * inf is NaN, so a class without a share needs a finite logit.
        shares = target.to(logits.dtype)[..., None].flatten(2)
        fits = (
            torch.einsum("nci,ncj->nij", logits.clamp_min(-1e30), shares) - total[:, :, None] * shares.sum(1)[:, None]
        )
    else:
        # An ignored position may hold any number, which is no class.
        tokens = torch.where(places, target[:, None].flatten(1).long(), 0)
        # Gathered from the logits, so that no matrix of log-probabilities is made.
        found = logits.gather(1, tokens[:, :, None].expand(-1, -1, logits.shape[2]))
        fits = found.transpose(1, 2) - total[:, :, None]
    return fits.clamp_min(_LEAST)


def _of_size(
    n: int, fits: Tensor, places: Tensor, of_all: Tensor, generator: torch.Generator | None, noise: bool
) -> Tensor:
    """(N,) the mean over the n-grams of a target of how well each fits; of the whole sequence if it is shorter."""
    starts = places.shape[1] - n + 1
    if starts < 1:
        return of_all
    means = torch.stack([fits[:, k : k + starts, k : k + starts] for k in range(n)]).mean(0)
    counts = places.unfold(1, n, 1).all(2)
    scores = means
    if noise:
        device = fits.device if generator is None else generator.device
        drawn = torch.empty(means.shape, device=device, dtype=means.dtype).exponential_(generator=generator)
        scores = means - drawn.log().to(fits.device, non_blocking=True)
    chosen = scores.masked_fill(~counts[:, :, None], torch.finfo(scores.dtype).min).softmax(1)
    found = _mean((chosen * means).sum(1), counts)
    return torch.where(counts.any(1), found, of_all)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """(N,) the mean of (N, T) values that count; 0 without any."""
    return torch.where(counts, values, 0.0).sum(1) / counts.sum(1).clamp_min(1)


def _check(ngrams: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(ngrams)
    if not sizes or not all(size >= 1 and size % 1 == 0 for size in sizes):
        raise ValueError(f"ngrams={ngrams} must hold one size or more, each a whole number >= 1.")
    return sizes


class EditInvariantSequenceLoss(Loss):
    r"""Trains sequences on what they say, and not on where exactly they say it (EISL).

    The losses are those of :func:`edit_invariant_sequence_loss`.

    Args:
        ngrams: the sizes of the n-grams. Small ones forgive most; one of the whole sequence is cross entropy.
        noise: whether the places are chosen with Gumbel noise, as in the authors' code.

    Raises:
        ValueError: no or bad sizes.

    When to use: for text whose targets are noisy (shuffled, repeated or blank words) or not aligned with the output,
    such as non-autoregressive translation. Begin with a model that was trained by cross entropy.
    Cost: T · T numbers for each sequence and size.
    Interactions: a sample is a whole sequence, so let your step pass logits of the shape (N, C, T) to its criterion, as
    ``F.cross_entropy(logits.transpose(1, 2), tokens)``. Each sequence counts the same, however long it is. A decoder
    with teacher forcing sees the tokens before each position, whatever the loss forgives. Class weights and label
    smoothing of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> loss = EditInvariantSequenceLoss(ngrams=(4,))
        >>> loss(torch.zeros(1, 2, 3), torch.tensor([[0, 1, 0]]))  # of three tokens: cross entropy
        tensor([0.6931])

    Paper: Liu et al., Don't Take It Literally: An Edit-Invariant Sequence Loss for Text Generation, NAACL 2022,
    https://arxiv.org/abs/2106.15078.
    """

    function = staticmethod(edit_invariant_sequence_loss)
    family = "label noise"
    problems = ("classes",)
    unit: ClassVar[Literal["row", "sample"]] = "sample"
    by_process = "each process draws the noise of its own sequences"

    def __init__(self, *, ngrams: Sequence[int] = (2, 3, 4), noise: bool = True) -> None:
        super().__init__()
        self.ngrams = _check(ngrams)
        self.noise = noise

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(N, C, T) logits, (N, T) tokens, (N, T) what counts, and where noise is drawn from -> (N,) losses."""
        return edit_invariant_sequence_loss(logits, target, mask, generator, ngrams=self.ngrams, noise=self.noise)
