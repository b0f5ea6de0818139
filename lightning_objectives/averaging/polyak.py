"""Polyak averaging: the mean of all weights of a training, or one in which later weights count more."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import AverageState, Rule


def polyak_weight(updates: int, *, power: float = 0.0) -> float:
    r"""Compute the share of the newest weights after ``updates`` earlier ones, :math:`(\eta + 1) / (t + \eta)`.

    Here :math:`t` is ``updates`` and 1. The first weights have the share 1.

    Raises:
        ValueError: a power that is negative or not finite.

    >>> [round(polyak_weight(n), 3) for n in range(4)]
    [1.0, 0.5, 0.333, 0.25]
    >>> [round(polyak_weight(n, power=3.0), 3) for n in range(4)]
    [1.0, 0.8, 0.667, 0.571]
    """
    _check(power)
    return (power + 1) / (updates + 1 + power)


def _check(power: float) -> None:
    if not 0 <= power < math.inf:
        raise ValueError(
            f"power={power} must be finite and >= 0; 0 is the plain mean, and larger numbers forget faster."
        )


class PolyakAveraging(Rule):
    r"""Averages the weights of all steps, so that the noise of the steps cancels.

    .. math::
        \bar\theta_t = (1 - c_t) \bar\theta_{t-1} + c_t \theta_t, \qquad c_t = \frac{\eta + 1}{t + \eta}

    with :math:`c_t` of :func:`polyak_weight` at the t-th update. With :math:`\eta = 0` it is the plain mean of
    :math:`\theta_1` to :math:`\theta_t`. A larger :math:`\eta` lets later weights count more (polynomial decay): for
    large t, the share of :math:`\theta_i` grows as :math:`(i / t)^\eta`. The weights at which the average began are not
    part of it.

    Args:
        power: :math:`\eta \ge 0`.

    Raises:
        ValueError: a power that is negative or not finite.

    When to use: for convex problems, such as a linear model on fixed features, at a constant or slowly falling learning
    rate. The plain mean remembers the beginning for ever, so begin late (``start_step``), or take ``power=3``. For deep
    networks prefer :class:`EMA`, which forgets, or :class:`SWA`, which is the plain mean of the ends of epochs.
    Cost: one float32 copy of the trainable weights and one pass over it per update.
    Interactions: gains vanish if the learning rate has decayed to zero.

    Example:
        >>> polyak, weights = PolyakAveraging(power=1.0), [torch.tensor([9.0])]
        >>> state = polyak.init(weights)
        >>> for step, value in enumerate([3.0, 6.0], start=1):
        ...     polyak.update(state, [torch.tensor([value])], step=step)
        >>> polyak.read(state, weights, step=2)  # 3 and 6 in the shares 1/3 and 2/3
        [tensor([5.])]

    Paper: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992,
    https://doi.org/10.1137/0330046; with a power above 0, Shamir and Zhang, Stochastic Gradient Descent for Non-smooth
    Optimization, ICML 2013, https://arxiv.org/abs/1212.1824.
    """

    by_tensor = True

    def __init__(self, *, power: float = 0.0) -> None:
        _check(power)
        self.power = power

    def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int = 0) -> None:
        """Add the weights after optimizer step ``step`` to the average, in place."""
        self.check(state, params)
        torch._foreach_lerp_(state.slots["average"], list(params), polyak_weight(state.updates, power=self.power))
        state.updates += 1
