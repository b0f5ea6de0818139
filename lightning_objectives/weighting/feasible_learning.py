"""Feasible learning."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_objectives.kinds import Row, Weighting
from lightning_objectives.shapes import check_shapes, forms

_FORMS = {"multipliers": forms("(N,) float")}


def ascended_multipliers(
    losses: Tensor, multipliers: Tensor, *, tolerance: float, step_size: float = 1.0, slack: float = 0.0
) -> Tensor:
    r"""Compute the new multipliers of the samples: they grow where the loss is too high, and fall where it is not.

    .. math::
        \lambda_i \leftarrow \left[ \lambda_i + \eta \left( \ell_i - \epsilon - \tfrac{\lambda_i}{\alpha} \right)
        \right]_+

    where the part with :math:`\alpha` is that of the resilient form.

    Args:
        losses: (N,).
        multipliers: (N,) before.
        tolerance: :math:`\epsilon`, the loss that each sample may have.
        step_size: :math:`\eta > 0`.
        slack: :math:`\alpha \ge 0`; 0 is the form without slack.

    Returns:
        (N,) multipliers >= 0, without gradient. A loss that is not finite leaves its multiplier.

    Raises:
        ValueError: shapes that do not fit, or a setting out of its range.

    Example:
        >>> ascended_multipliers(torch.tensor([2.0, 0.1]), torch.tensor([1.0, 0.2]), tolerance=0.5)
        tensor([2.5000, 0.0000])
    """
    _check(step_size, slack)
    check_shapes(_FORMS, losses=losses, multipliers=multipliers)
    losses = losses.detach().to(multipliers.dtype)
    excess = losses - tolerance - (multipliers / slack if slack else 0.0)
    return torch.where(losses.isfinite(), (multipliers + step_size * excess).clamp_min(0), multipliers)


def _check(step_size: float, slack: float) -> None:
    if not step_size > 0:
        raise ValueError(f"step_size={step_size} must be > 0.")
    if not slack >= 0:
        raise ValueError(f"slack={slack} must be >= 0; 0 is the form without slack.")


class FeasibleLearning(Weighting):
    r"""Makes every sample reach a loss that is good enough, in place of a low mean: each has a multiplier of its own.

    The weights are the multipliers, after :func:`ascended_multipliers` has moved them by this step's losses. Samples
    below the tolerance lose their weight with time, and training ends for them.

    Args:
        tolerance: :math:`\epsilon`, the loss that each sample may have. For a probability p of the right class it is
            -log p.
        step_size: :math:`\eta`, how fast the multipliers move.
        slack: :math:`\alpha`, for tolerances that not all samples can reach: multipliers stop at
            :math:`\alpha (\ell_i - \epsilon)`. 0 for none.

    Raises:
        ValueError: ``step_size`` not above 0, or ``slack`` below 0.

    When to use: if the worst samples matter more than the mean, and a loss is known that is good enough.
    Cost: one number in float32 for each sample of the data set, on the device and in each checkpoint.
    Interactions: wrap the data set with ``with_index``. The weights begin at 0 for samples below the tolerance, and
    their mean is not 1: the learning rate may need another value.

    Example:
        >>> method = FeasibleLearning(tolerance=0.5)
        >>> method(torch.tensor([2.0, 0.1]), {"multipliers": torch.zeros(2)})
        tensor([1.5000, 0.0000])

    Paper: Ramirez et al., Feasible Learning, AISTATS 2025, https://arxiv.org/abs/2501.14912.

    Differs from the paper: its classification code moves the multipliers by a controller (nu-PI), this by plain ascent.
    """

    family = "worst cases"
    example: ClassVar = {"tolerance": 0.5}
    remembers: ClassVar = {"multipliers": Row((), 0.0)}
    unkept_laws: ClassVar = {
        "equal_samples_weigh_the_same": "equal samples have the same multiplier, but it need not be 1",
        "one_weight_a_sample_and_their_mean_is_one": "multipliers say how hard a sample is, and may all be 0",
    }

    def __init__(self, *, tolerance: float, step_size: float = 1.0, slack: float = 0.0) -> None:
        super().__init__()
        _check(step_size, slack)
        self.tolerance = tolerance
        self.step_size = step_size
        self.slack = slack

    def forward(self, losses: Tensor, memory: Mapping[str, Tensor]) -> Tensor:
        """(N,) losses and the multipliers -> (N,) weights."""
        return self.learn(losses, memory)["multipliers"]

    def learn(self, losses: Tensor, memory: Mapping[str, Any]) -> dict[str, Tensor]:
        """The new multipliers."""
        settings = {"tolerance": self.tolerance, "step_size": self.step_size, "slack": self.slack}
        return {"multipliers": ascended_multipliers(losses, memory["multipliers"], **settings)}
