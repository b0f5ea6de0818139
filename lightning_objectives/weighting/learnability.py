"""Selection of the samples that a first training has taught the network (LoBaSS, DavIR)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Weighting
from lightning_objectives.shapes import check_shapes
from lightning_objectives.weighting._positions import numbers_at


class LearnabilitySelection(Weighting):
    r"""Fine-tunes on the few samples that the network can learn: those whose loss a first fine-tuning lowered most.

    .. math::
        s_i = \frac{\ell_i^{\text{before}} - \ell_i^{\text{after}}}{\ell_i^{\text{before}}}, \qquad
        w_i = \frac{n}{K} \left[ s_i \text{ is among the } K \text{ highest} \right], \quad K = \lfloor q n \rfloor

    with :math:`n` samples in the training set. At least one sample is kept. Samples that the network knew before, and
    those that it cannot learn, such as wrong answers, have low scores.

    Args:
        losses_before: the loss of each sample of the training set, by its position, of the network that is fine-tuned.
        losses_after: the same after a first fine-tuning on all samples, or on some of them.
        keep: :math:`q \in (0, 1]`, the share of the samples that is kept; 1 is the plain training. The paper surpasses
            the full data with 6 % of the Alpaca data, and mixes chat and mathematics with 16.7 %.

    Returns:
        ``forward(index)`` gives (N,) weights, 0 or :math:`n / K`, float32, without gradient. Their mean is 1 over the
        training set, not in each batch.

    Raises:
        ValueError: no loss, lists of different lengths, a loss that is negative or not finite, or a ``keep`` outside
            its range; in the training, positions of another shape than (N,), or beyond the lists. On a GPU the latter
            is torch's own error.

    When to use: to fine-tune a language model on much data of mixed quality. Run the network over the training set in
    the order of the data set, before and after a first fine-tuning, and collect the mean loss of each sample. Then
    fine-tune the first network anew with this method.
    Cost: a first fine-tuning, and two passes over the data; one number for each sample on the device.
    Interactions: wrap the data set with ``with_index``. Samples that are not kept still cost their forward pass, and a
    batch without a kept sample teaches nothing. To save the time too, train on ``Subset(data, method.kept)``.

    Example:
        >>> losses = {"losses_before": [2.0, 1.0, 4.0, 0.1], "losses_after": [1.0, 0.9, 1.0, 0.1]}
        >>> method = LearnabilitySelection(**losses, keep=0.5)
        >>> method.kept  # The scores are 0.5, 0.1, 0.75 and 0.
        (0, 2)
        >>> method(torch.arange(4))
        tensor([2., 0., 2., 0.])

    Paper: Zhou et al., LoBaSS: Gauging Learnability in Supervised Fine-tuning Data, 2023, later DavIR: Data Selection
    via Implicit Reward for Large Language Models, ACL 2025, https://arxiv.org/abs/2310.13008. The score is the relative
    reduction in loss of its abstract. Not checked at the source: the equation.

    Differs from the paper: weights of 0 in place of a smaller data set.
    """

    family = "fine-tuning"
    example: ClassVar[dict[str, Any]] = {"losses_before": (2.0, 1.0) * 48, "losses_after": (1.0, 0.9) * 48, "keep": 0.5}
    unkept_laws: ClassVar[dict[str, str]] = {
        "equal_samples_weigh_the_same": "equal samples are all kept or all left out",
        "one_weight_a_sample_and_their_mean_is_one": "a batch may hold many kept samples, or none",
    }

    def __init__(self, *, losses_before: Sequence[float], losses_after: Sequence[float], keep: float = 0.06) -> None:
        super().__init__()
        self.losses_before = tuple(map(float, losses_before))
        self.losses_after = tuple(map(float, losses_after))
        self.keep = keep
        samples = len(self.losses_before)
        if samples != len(self.losses_after) or not samples:
            raise ValueError(
                f"losses_before has {samples} numbers, and losses_after {len(self.losses_after)}: both must hold one "
                "for each sample of the training set."
            )
        for name, losses in (("losses_before", self.losses_before), ("losses_after", self.losses_after)):
            for position, loss in enumerate(losses):
                if not 0 <= loss < float("inf"):
                    raise ValueError(f"{name}[{position}]={loss} must be >= 0 and finite, or it could not be compared.")
        if not 0 < keep <= 1:
            raise ValueError(f"keep={keep} must be in (0, 1]: the share of the samples that is kept; 1 keeps all.")
        before = torch.tensor(self.losses_before, dtype=torch.float64)
        after = torch.tensor(self.losses_after, dtype=torch.float64)
        # A loss of 0 before leaves nothing to learn: its score is 0, or very low if the sample was unlearned.
        scores = (before - after) / before.clamp_min(torch.finfo(torch.float64).tiny)
        count = max(1, int(keep * samples + 1e-6))  # In floats 0.29 · 100 is a bit below 29.
        chosen = scores.argsort(descending=True, stable=True)[:count]
        self.kept = tuple(sorted(chosen.tolist()))
        weights = torch.zeros(samples).index_fill(0, chosen, samples / count)
        self.register_buffer("_weights", weights, persistent=False)
        self._weights: Tensor

    def forward(self, index: Tensor) -> Tensor:
        """(N,) positions -> (N,) weights."""
        check_shapes(index=index)
        return numbers_at(index, self._weights, name="losses_before")
