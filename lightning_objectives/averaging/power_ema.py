"""Power-function EMA: an average that reaches back over a fixed part of the training, however long it is."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_objectives.kinds import AverageState, Rule

_WIDEST = 1 / math.sqrt(12)
"""The relative width of the plain mean, whose exponent is 0."""


def power_ema_exponent(sigma_rel: float) -> float:
    r"""Compute the exponent :math:`\gamma` of the profile :math:`t^\gamma` that has a relative width.

    It is the greatest root of :math:`\gamma^3 + 7 \gamma^2 + (16 - s) \gamma + 12 - s` with
    :math:`s = \sigma_{rel}^{-2}`, which solves

    .. math::
        \sigma_{rel} = \frac{\sqrt{\gamma + 1}}{(\gamma + 2) \sqrt{\gamma + 3}}

    Raises:
        ValueError: a width that is not in :math:`(0, 1 / \sqrt{12}]`; the largest is that of the plain mean.

    >>> round(power_ema_exponent(0.05), 4), round(power_ema_exponent(0.1), 4)
    (16.9722, 6.9372)
    """
    _check(sigma_rel)
    square = sigma_rel**-2
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - square, 12.0 - square]).real.max()))


def power_ema_decay(updates: int, *, sigma_rel: float = 0.1) -> float:
    r"""Compute the share of the old average that is kept after ``updates`` earlier ones.

    At the t-th update it is :math:`(1 - 1/t)^{\gamma + 1}`, with :math:`\gamma` of :func:`power_ema_exponent`. The
    first weights are copied.

    Raises:
        ValueError: a width that is out of range.

    >>> [round(power_ema_decay(n), 3) for n in (0, 1, 9, 99)]
    [0.0, 0.004, 0.433, 0.923]
    """
    return float((1 - 1 / (updates + 1)) ** (power_ema_exponent(sigma_rel) + 1))


def _check(sigma_rel: float) -> None:
    if not 0 < sigma_rel <= _WIDEST:
        raise ValueError(
            f"sigma_rel={sigma_rel} must be > 0 and at most 1 / sqrt(12) = 0.28867..., the width of the plain mean; "
            "0.05 and 0.1 are the paper's."
        )


class PowerEMA(Rule):
    r"""Averages a fixed part of the training, such as its last tenth, however long the training is.

    The weights of time t count as :math:`t^\gamma`, so that the average forgets the beginning and grows with the
    training:

    .. math::
        \bar\theta_t = \beta_t \bar\theta_{t-1} + (1 - \beta_t) \theta_t, \qquad
        \beta_t = \left(1 - \frac{1}{t}\right)^{\gamma + 1}

    with :math:`\beta_t` of :func:`power_ema_decay` at the t-th update. After T updates the share of the i-th weights is
    :math:`(i / T)^{\gamma + 1} - ((i - 1) / T)^{\gamma + 1}`. The weights at which the average began leave no trace.

    Args:
        sigma_rel: the width of the profile, as a standard deviation in parts of the training so far, in (0, 0.2886].
            Narrow averages forget fast; :math:`1 / \sqrt{12}` is the plain mean of all weights.

    Raises:
        ValueError: a width that is out of range.

    When to use: for diffusion models, and wherever you do not know how long the training will be: an :class:`EMA` needs
    another decay for another length. The paper keeps two averages, of the widths 0.05 and 0.1. The best width depends
    on the network and the data: try several with ``AverageWeights([PowerEMA(...), PowerEMA(...)])``.
    Cost: one float32 copy of the trainable weights and one pass over it per update.
    Interactions: after the training :func:`post_hoc_ema`, or the command ``lightning-objectives ema``, puts together
    the average of any width from checkpoints that hold two. Each update counts as one interval of the same length, so
    update at equal intervals (``every_n_steps``). The time is counted from where the average begins.

    Example:
        >>> power, weights = PowerEMA(sigma_rel=0.25), [torch.tensor([9.0])]
        >>> state = power.init(weights)
        >>> for step, value in enumerate([1.0, 2.0], start=1):
        ...     power.update(state, [torch.tensor([value])], step=step)
        >>> power.read(state, weights, step=2)  # gamma = 0.7198, so that 1 has the share (1/2)^1.7198
        [tensor([1.6964])]

    Paper: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, CVPR 2024, section 3.1 and
    appendix C, https://arxiv.org/abs/2312.02696.

    """

    by_tensor = True

    def __init__(self, *, sigma_rel: float = 0.1) -> None:
        _check(sigma_rel)
        self.sigma_rel = sigma_rel

    def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int = 0) -> None:
        """Add the weights after optimizer step ``step`` to the average, in place."""
        self.check(state, params)
        decay = power_ema_decay(state.updates, sigma_rel=self.sigma_rel)
        torch._foreach_lerp_(state.slots["average"], list(params), 1 - decay)
        state.updates += 1
