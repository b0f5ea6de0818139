"""Dual-head knowledge distillation."""

from typing import Literal

from torch import Tensor, nn

from lightning_objectives.combination.gradient_alignment import GradientAlignment
from lightning_objectives.distillation.binary_kl import binary_kl
from lightning_objectives.kinds import Combination, Distillation

Auxiliary = Literal["linear", "mlp"]


def dual_head_loss(logits: Tensor, teacher_logits: Tensor, *, alpha: float = 1.0, temperature: float = 2.0) -> Tensor:
    r"""Compute the loss of the auxiliary head: :math:`\alpha` times the normalized :func:`binary_kl`.

    .. math::
        L = \mathrm{CE}(H_1(f), y) + \frac{1}{N} \sum_n \alpha\, T^2 \sum_k \log\cosh\frac{H_2(f_n)_k - t_{nk}}{2 T}

    The label loss sees only the network's head :math:`H_1`, and the teacher's loss only the auxiliary head :math:`H_2`.
    Both reach the backbone, because both heads take its features :math:`f`.

    Args:
        logits: (N, C) of the auxiliary head.
        teacher_logits: (N, C); no gradient flows to it.
        alpha: :math:`\alpha \ge 0`.
        temperature: :math:`T > 0`.

    Returns:
        (N,) distances >= 0, up to rounding.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive, or a negative ``alpha``.

    Example:
        >>> import torch
        >>> dual_head_loss(torch.tensor([[4.0]]), torch.tensor([[0.0]]), alpha=0.5)  # 2 log cosh 1
        tensor([0.8676])

    Paper: Yang et al., Dual-Head Knowledge Distillation, KDD 2025, https://arxiv.org/abs/2411.08937.
    """
    _check(alpha)
    return alpha * binary_kl(logits, teacher_logits, temperature=temperature, normalize=True)


def _check(alpha: float) -> None:
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha={alpha} must be >= 0 and finite.")


class DualHead(Distillation):
    r"""Distils a teacher through an auxiliary head, so that the network's own head learns from the labels alone.

    The distances are those of :func:`dual_head_loss`. The auxiliary head is thrown away after the training.

    Args:
        alpha: :math:`\alpha \ge 0`, the weight of the teacher; the authors' runs use 1 on CIFAR-100 and 0.1 on
            ImageNet. At 0 nothing is touched.
        temperature: :math:`T`; 2 in the authors' runs.
        auxiliary: ``"linear"``, or ``"mlp"``: 200 hidden units with dropout and BatchNorm, which the authors use if
            teacher and student are of different families.
        align: remove from the teacher's gradient what conflicts with the gradient of the model's own loss, by
            :class:`GradientAlignment`; the authors use it together with ``"mlp"``.
        stop_epoch: the epoch from which the teacher is not used any more (50 of 100 in the authors' ImageNet runs);
            None never stops.

    Raises:
        ValueError: a setting outside its range.

    When to use: to train a small network from scratch under a stronger teacher of the same classes. **It was seen to
    hurt students that are already strong**: for a pretrained PiT-B that is fine-tuned on CIFAR-100 under VOLO-D2, an
    independent study reports 85.83 % with it, 87.37 % without a teacher and 87.58 % with :class:`VanillaKD`. Begin with
    a low ``alpha`` there. Reviewers of the paper read gains of 0.1 to 0.2 points in most of its settings.
    Cost: the teacher's forward pass and one more head; with ``align`` a second backward pass, and three gradients kept
    in memory.
    Interactions: tasks with one logit are outside the paper's argument. The BatchNorm of ``"mlp"`` needs more than one
    sample per batch: drop the last batch if it is short.

    Example:
        >>> import torch
        >>> DualHead(alpha=0.5)(torch.tensor([[4.0]]), torch.tensor([[0.0]]))
        tensor([0.8676])
        >>> dual = DualHead()
        >>> dual.build(features=5, classes=3)
        >>> dual.auxiliary_head
        Linear(in_features=5, out_features=3, bias=True)

    Differs from the paper: the label loss is the model's own, whatever it is.
    """

    function = staticmethod(dual_head_loss)
    problems = ("classes", "binary", "labels")
    builds_head = True

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        temperature: float = 2.0,
        auxiliary: Auxiliary = "linear",
        align: bool = False,
        stop_epoch: int | None = None,
    ) -> None:
        super().__init__()
        _check(alpha)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature={temperature} must be > 0 and finite.")
        if auxiliary not in ("linear", "mlp"):
            raise ValueError(f"auxiliary={auxiliary!r} must be 'linear' or 'mlp'.")
        if stop_epoch is not None and stop_epoch < 0:
            raise ValueError(f"stop_epoch={stop_epoch} must be >= 0, or None to go on to the end.")
        self.alpha = alpha
        self.temperature = temperature
        self.auxiliary: Auxiliary = auxiliary
        self.align = align
        self.stop_epoch = stop_epoch

    @property
    def idle(self) -> bool:
        """Whether ``alpha`` or ``stop_epoch`` is 0, so that nothing is attached."""
        return self.alpha == 0 or self.stop_epoch == 0

    def build(self, *, features: int, classes: int) -> None:
        """Build a new auxiliary head, with torch's initialisation."""
        if self.auxiliary == "linear":
            self.auxiliary_head = nn.Linear(features, classes)
        else:
            hidden = 200
            self.auxiliary_head = nn.Sequential(
                nn.Linear(features, hidden),
                nn.Dropout(0.1),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, classes),
            )

    def combination(self) -> Combination | None:
        """Build the gradient alignment if ``align`` is set; None if not."""
        return GradientAlignment() if self.align else None

    def forward(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """(N, C) logits of the auxiliary head and of the teacher -> (N,) distances."""
        return dual_head_loss(logits, teacher_logits, alpha=self.alpha, temperature=self.temperature)
