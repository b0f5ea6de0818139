"""Universal self-knowledge distillation (USKD)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_classes, check_shapes

_SMOOTHING = 0.1
"""The label smoothing of the weak head's own loss."""
_LEAST = 1e-6
"""What keeps the quotients of the ranking finite."""


class UniversalSelfKD(Regularizer):
    r"""Gives a network soft labels of its own, as a teacher would, without a teacher.

    .. math::
        -\alpha\, t \log p_y - \beta \sum_{k \ne y} z_k \log \hat p_k + \mu \operatorname{CE}(w, y), \qquad
        t = v + p_y^2 - \overline{p_y^2}

    with p the softmax of the logits, :math:`\hat p` that of the logits beside the target's, :math:`v` the label's
    value (1), and the bar the mean over the batch. :math:`w` are the logits of a weak head: a linear layer on the means
    over space of the layers that you name, trained with a label smoothing of 0.1. :math:`z_k` is 1 over the rank of
    class k (Zipf's law), divided by the sum of the others, without gradient. The rank is that of

    .. math::
        \frac{q_k}{1 - q_y} + \frac{\log p_k}{1 - \log p_y}

    with q the softmax of :math:`w`. Of class probabilities (mixed labels) the two most probable classes are targets.

    Args:
        alpha: :math:`\alpha \ge 0`.
        beta: :math:`\beta \ge 0`.
        mu: :math:`\mu \ge 0`; at 0 the weak head is never trained.

    Raises:
        ValueError: a negative setting; in the training, shapes that do not fit or a single class.

    When to use: beside cross entropy, with ``AddRegularizer(UniversalSelfKD(), layers="model.layer3")``. The layer is
    one before the last stage. The defaults are those of the authors' code for ImageNet.
    Cost: one matrix, trained with the network and gone afterwards; a sort of the classes in each row.
    Interactions: the target's share compares a sample with its batch, so tiny batches have noisy shares. With two
    classes the middle part is 0.

    Example:
        >>> method = UniversalSelfKD(mu=0.0)
        >>> method.build(hidden=(4,), classes=3)
        >>> logits, hidden = torch.tensor([[0.0, 0.0, 0.0]]), (torch.zeros(1, 4, 2, 2),)
        >>> method(logits, torch.tensor([0]), hidden).detach()  # log 3 + 0.1 log 2
        tensor([1.1679])

    Paper: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels, ICCV 2023, https://arxiv.org/abs/2303.13005. As in its code, the ranking adds
    logarithms of probabilities where the text speaks of probabilities.

    Differs from the code: a class of mixed labels with the probability 0 is no target.
    """

    family = "overconfidence"
    problems = ("classes",)
    coupled = "the target's value depends on the mean over the batch"
    by_process = "each process takes the mean over its own batch"
    unkept_laws: ClassVar = {"the_gradient_is_that_of_finite_differences": "the soft labels are constants"}

    def __init__(self, *, alpha: float = 1.0, beta: float = 0.1, mu: float = 0.005) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta), ("mu", mu)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be >= 0 and finite; 0 leaves this part out.")
        self.alpha = alpha
        self.beta = beta
        self.mu = mu
        self.weak_head: nn.Linear | None = None

    def build(self, *, hidden: Sequence[int], classes: int) -> None:
        """A new weak head on the channels of the layers together; a head with one logit is one for two classes."""
        self.weak_head = nn.Linear(sum(hidden), max(classes, 2))

    def forward(
        self, logits: Tensor, target: Tensor, hidden: Sequence[Tensor], head: nn.Module | None = None
    ) -> Tensor:
        """(N, C) logits, (N,) classes or (N, C) probabilities, and maps (N, channels, ...) -> (N,) terms.

        The head is named because ``build`` asks for its number of classes; its weights are not used.
        """
        check_shapes(logits=logits, target=target)
        check_classes(logits)
        assert self.weak_head is not None
        pooled = torch.cat([maps.flatten(2).mean(2) if maps.dim() > 2 else maps for maps in hidden], 1)
        weak: Tensor = self.weak_head(pooled.to(self.weak_head.weight.dtype))
        if weak.shape != logits.shape:
            raise ValueError(
                f"logits of the shape {tuple(logits.shape)} must be those of the weak head, {tuple(weak.shape)}: one "
                "row for each sample, and the classes of the head. Name the head of these logits by head='path.to.it'."
            )
        log_p, log_q = _wide(logits).log_softmax(1), _wide(weak).log_softmax(1)
        labels, counted = _labels(target, log_p)
        value, places = labels.topk(min(2, labels.shape[1]))
        own = torch.zeros_like(labels).scatter(1, places, (value > 0).to(labels.dtype)) > 0
        smooth = (1 - _SMOOTHING) * labels + _SMOOTHING / labels.shape[1]
        terms = self.alpha * _of_targets(log_p, value, places, counted) - self.mu * (smooth * log_q).sum(1)
        return terms + self.beta * _of_others(_wide(logits), _zipf(log_p, log_q, own), own)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _labels(target: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) class probabilities, and (N, 1) 1 for each row that has a class, 0 for one to ignore."""
    if target.is_floating_point():
        return target.to(log_p.dtype), torch.ones_like(log_p[:, :1])
    known = (target >= 0) & (target < log_p.shape[1])
    classes = torch.where(known, target, 0).long()[:, None]
    return torch.zeros_like(log_p).scatter(1, classes, 1.0), known.to(log_p.dtype)[:, None]


def _of_targets(log_p: Tensor, value: Tensor, places: Tensor, counted: Tensor) -> Tensor:
    """(N,) cross entropies of the classes of the label, whose shares follow the network's own."""
    found = log_p.gather(1, places)
    squares = (2 * found.detach()).exp()
    share = squares + value - (squares * counted).sum(0) / counted.sum().clamp_min(1)
    return -(torch.where(value > 0, share, 0.0) * found).sum(1)


def _zipf(log_p: Tensor, log_q: Tensor, own: Tensor) -> Tensor:
    """(N, C) soft labels of the classes beside the targets: 1 / rank, which sums to 1 without the targets."""
    log_p, q = log_p.detach(), log_q.detach().exp()
    of_own = [torch.where(own, shares, 0.0).sum(1, keepdim=True) for shares in (q, log_p)]
    order = (q / (1 - of_own[0] + _LEAST) + log_p / (1 - of_own[1] + _LEAST)).argsort(1, descending=True)
    rank = order.argsort(1) + 1
    shares = torch.where(own, 0.0, 1 / rank.to(q.dtype))
    return shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)


def _of_others(logits: Tensor, shares: Tensor, own: Tensor) -> Tensor:
    """(N,) cross entropies between soft labels and the softmax of the logits beside the targets; 0 without any."""
    hidden = own & ~own.all(1, keepdim=True)
    log_p = F.log_softmax(logits.masked_fill(hidden, -torch.inf), 1)
    return -(shares * log_p.masked_fill(own, 0.0)).sum(1)
