"""Odd-k-out learning."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Loss
from lightning_objectives.losses._targets import expected, wide
from lightning_objectives.shapes import check_classes, check_shapes


def odd_k_out_loss(logits: Tensor, target: Tensor, generator: torch.Generator | None = None, *, odd: int = 1) -> Tensor:
    r"""Compute the cross entropy of sets: two samples of one class and k of others, whose logits are added up.

    .. math::
        \ell_i = \frac{N}{K n_{y_i}} \left( -\log \operatorname{softmax}_{y_i}\left(z_i + z_{p(i)} +
        \sum_{j=1}^{k} z_{o_j(i)} \right) \right)

    Each sample begins a set. Its partner :math:`p(i)` is another sample of its class, and the odd ones are samples of k
    other classes. All are drawn from the batch: the classes uniformly among those that are there, then a sample of
    each. The factor makes the K classes that have a pair count the same, with :math:`n_y` samples each, as if the class
    of the set had been drawn first.

    Args:
        logits: (N, C) with C >= 2, in any float type; computed in float32 or better.
        target: (N,) int classes or (N, C) float class probabilities. Of the latter, the most likely class is that of
            the sample in its sets, and the loss of a set is the expectation over the target of its first sample.
        generator: where all draws come from; None for the global stream.
        odd: :math:`k \ge 0`. If the batch has fewer other classes, the set has fewer odd ones.

    Returns:
        (N,) losses; 0 for a sample that is alone in its class.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a negative ``odd``.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])  # The set of both first samples: (3, 1).
        >>> odd_k_out_loss(logits, torch.tensor([0, 0, 1]), torch.Generator())  # 3 / 2 · log(1 + e^-2)
        tensor([0.1904, 0.1904, 0.0000])

    Paper: Muttenthaler et al., Set Learning for Accurate and Calibrated Models, ICLR 2024,
    https://arxiv.org/abs/2307.02245.

    Differs from the paper: sets are made of the samples of a batch, not drawn from the data set by a sampler of their
    own. The authors' second head, for the odd class, is not here. Class probabilities are our extension.
    """
    _check(odd)
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    logits, shares = wide(logits), target
    target = target.argmax(1) if target.is_floating_point() else target.long()
    rows, classes = logits.shape
    member = F.one_hot(target, classes)
    counts = member.sum(0)
    order = target.argsort(stable=True)
    first = counts.cumsum(0) - counts  # where each class begins in this order
    place = (member.cumsum(0) - 1).gather(1, target[:, None])[:, 0]  # of each row among those of its class
    drawn = torch.rand(rows, 2 * classes + 1, generator=generator, device=_device(generator, logits))
    drawn = drawn.to(logits.device, non_blocking=True)
    of_classes, of_samples, of_partners = drawn[:, :classes], drawn[:, classes:-1], drawn[:, -1]

    others = counts[target] - 1
    partner = _below(of_partners, others)
    partner = order[first[target] + torch.where(others > 0, partner + (partner >= place), 0)]

    present = (counts > 0) & (member == 0)
    chosen = torch.where(present, of_classes, -1.0).topk(min(odd, classes - 1), dim=1).indices
    there = present.gather(1, chosen)
    sample = first[chosen] + _below(of_samples.gather(1, chosen), counts[chosen])
    odd_ones = logits[order[torch.where(there, sample, 0)]]
    sets = logits + logits[partner] + torch.where(there[..., None], odd_ones, 0.0).sum(1)

    pairs = counts > 1
    factor = rows / (pairs.sum().clamp_min(1) * counts[target])
    return torch.where(pairs[target], factor * -expected(sets.log_softmax(1), shares), 0.0)


def _below(draws: Tensor, counts: Tensor) -> Tensor:
    # The product may be rounded up to the count.
    return (draws * counts).long().minimum(counts - 1)


def _device(generator: torch.Generator | None, logits: Tensor) -> torch.device:
    return logits.device if generator is None else generator.device


def _check(odd: int) -> None:
    if odd < 0:
        raise ValueError(f"odd={odd} must be >= 0; 1 is the paper's choice.")


class OddKOutLoss(Loss):
    r"""Trains accurate and calibrated classifiers from few or unequally distributed samples, by sets of samples.

    The losses are those of :func:`odd_k_out_loss`. Predict single samples, as ever: no temperature is needed.

    Args:
        odd: :math:`k \ge 0`, how many samples of other classes a set has. The paper uses 1.

    Raises:
        ValueError: a negative ``odd``.

    When to use: with few samples or a long tail of classes, if the calibration matters. Batches need two samples or
    more of most classes, because others have no pair and teach nothing: use batches far larger than the number of
    classes, or a sampler that draws several samples of a class.
    Cost: 2 C + 1 random numbers for each sample, on the CPU, and the logits of k + 2 samples.
    Interactions: every process makes sets of its own samples. Classes count the same, so use no other correction for
    class imbalance. The logged loss is that of the sets, not of samples. Not with mixed
    samples. Class weights and label smoothing of the replaced criterion are lost.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> OddKOutLoss()(logits, target, torch.Generator())
        tensor([0.1904, 0.1904, 0.0000])
    """

    function = staticmethod(odd_k_out_loss)
    family = "class imbalance"
    problems = ("classes",)
    coupled = "a loss is that of a set of samples of the batch"
    by_process = "each process makes sets of its own samples"
    unkept_laws: ClassVar[dict[str, Any]] = {
        "the_order_of_the_rows_means_nothing": "the members of the sets are drawn by their places in the batch"
    }

    def __init__(self, *, odd: int = 1) -> None:
        super().__init__()
        _check(odd)
        self.odd = odd

    def forward(self, logits: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) losses."""
        return odd_k_out_loss(logits, target, generator, odd=self.odd)
