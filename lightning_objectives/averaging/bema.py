"""Bias-corrected exponential moving average of the weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_objectives.kinds import AverageState, Rule


def bema_ema_weight(
    step: int, *, power: float = 0.5, lag: float = 10, multiplier: float = 1.0, minimum: float = 0.0
) -> float:
    r"""Compute the share of the newest weights, :math:`\beta_t = \max((\rho + \gamma t)^{-\kappa}, \beta_{min})`.

    Raises:
        ValueError: a setting outside the range that :class:`BEMA` gives.

    >>> round(bema_ema_weight(400), 4), bema_ema_weight(400, power=0.0), bema_ema_weight(400, minimum=0.1)
    (0.0494, 1.0, 0.1)
    """
    _check_in_unit(power=power, minimum=minimum)
    _check(lag, multiplier)
    return max(float((lag + multiplier * step) ** -power), minimum)


def bema_bias_weight(step: int, *, power: float = 0.2, lag: float = 10, multiplier: float = 1.0) -> float:
    r"""Compute how far the average is pushed on, away from where it began: :math:`\alpha_t = (\rho + \gamma
    t)^{-\eta}`.

    Raises:
        ValueError: a setting outside the range that :class:`BEMA` gives.

    >>> round(bema_bias_weight(400), 4), bema_bias_weight(400, power=0.0)
    (0.3002, 1.0)
    """
    _check_bias_power(power=power)
    _check(lag, multiplier)
    return float((lag + multiplier * step) ** -power)


def _check(lag: float, multiplier: float) -> None:
    if not lag >= 1:
        raise ValueError(f"lag={lag} must be >= 1, so that no coefficient exceeds 1; 10 is the paper's.")
    if not multiplier > 0:
        raise ValueError(f"multiplier={multiplier} must be > 0.")


def _check_in_unit(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be in [0, 1].")


def _check_bias_power(**setting: float) -> None:
    for name, value in setting.items():
        if not value >= 0:
            raise ValueError(f"{name}={value} must be >= 0; 0.2 is the paper's, float('inf') a plain EMA.")


class BEMA(Rule):
    r"""Averages the weights over time without lagging behind them: an exponential moving average, corrected for its
    bias.

    .. math::
        \bar\theta \leftarrow (1 - \beta_t) \bar\theta + \beta_t \theta_t, \qquad
        \mu_t = \bar\theta + \alpha_t (\theta_t - \theta_0)

    with :math:`\beta_t` of :func:`bema_ema_weight`, :math:`\alpha_t` of :func:`bema_bias_weight`, :math:`\theta_0` the
    weights at which the average began, and :math:`t` the number of optimizer steps since training, not the average,
    began.

    Args:
        ema_power: :math:`\kappa` in [0, 1]; 0 takes the newest weights alone, 1 is close to the plain mean.
        bias_power: :math:`\eta \ge 0`; 0 is the greatest correction, a large value none, which is a plain EMA.
        lag: :math:`\rho > 0`, in optimizer steps; at least 1, so that both coefficients are at most 1.
        multiplier: :math:`\gamma > 0`, how fast the coefficients fall.
        min_ema: :math:`\beta_{min}` in [0, 1], below which the share of the newest weights does not fall.

    Raises:
        ValueError: a setting outside its range.

    When to use: to fine-tune at a constant learning rate with noisy gradients, where an EMA would come too late. Update
    the average every 1 to 10 steps: :math:`\beta_t` falls with the step, not with the number of updates. At one update
    in 400 steps, most of the average is therefore the initial weights for thousands of steps.
    Cost: two float32 copies of the trainable weights, one pass over one of them per update, and one more, with a new
    copy, each time the average is read.
    Interactions: :math:`\mu_t` extrapolates, so it may leave the range that the weights have had; a running variance
    must never be extrapolated. Once the weights have converged, the correction overshoots, away from where they began,
    and this fades only with :math:`\alpha_t`: after a long way use a greater ``bias_power`` (0.4). A network with
    BatchNorm needs ``AverageWeights(..., buffers="recalibrate")``, because the statistics of the raw weights do not fit
    weights that lie beyond them (``make demo`` shows both). In a short fine-tuning that may not be enough: look at the
    validation, and take a ``bias_power`` of 0.8 if the average is worse than the raw weights. The corrected weights are
    computed for the step at which you read them, and not stored.

    Example:
        >>> bema, weights = BEMA(ema_power=1.0, bias_power=1.0, lag=1), [torch.tensor([0.0])]
        >>> state = bema.init(weights)
        >>> bema.update(state, [torch.tensor([1.0])], step=1)  # beta = 1/2: the average is 0.5
        >>> bema.read(state, [torch.tensor([1.0])], step=1)  # alpha = 1/2: 0.5 + 0.5 * (1 - 0)
        [tensor([1.])]

    Paper: Block and Zhang, EMA Without the Lag: Bias-Corrected Iterate Averaging Schemes, 2025,
    https://arxiv.org/abs/2508.00180, with the coefficients of TRL's ``BEMACallback``.

    Differs from the paper: the correction is computed for the step at which the average is read, while the published
    code leaves it as it was at the last update. The average is updated every step by default, not every 400. The state
    is kept in float32 and saved.
    """

    exemplar = True
    by_tensor = True

    def __init__(
        self,
        *,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        lag: float = 10,
        multiplier: float = 1.0,
        min_ema: float = 0.0,
    ) -> None:
        _check_in_unit(ema_power=ema_power, min_ema=min_ema)
        _check_bias_power(bias_power=bias_power)
        _check(lag, multiplier)
        self.ema_power = ema_power
        self.bias_power = bias_power
        self.lag = lag
        self.multiplier = multiplier
        self.min_ema = min_ema

    def init(self, params: Sequence[Tensor]) -> AverageState:
        """Build the state before the first update: the weights as the average, and again as the anchor."""
        state = super().init(params)
        state.slots["anchor"] = [p.detach().clone() for p in params]
        return state

    def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int = 0) -> None:
        """Add the weights after optimizer step ``step`` to the average, in place."""
        self.check(state, params)
        beta = bema_ema_weight(
            step, power=self.ema_power, lag=self.lag, multiplier=self.multiplier, minimum=self.min_ema
        )
        torch._foreach_lerp_(state.slots["average"], list(params), beta)
        state.updates += 1

    def read(self, state: AverageState, params: Sequence[Tensor], *, step: int) -> list[Tensor]:
        """Compute the corrected weights at ``step``, as new tensors; ``params`` are the raw weights."""
        self.check(state, params)
        alpha = bema_bias_weight(step, power=self.bias_power, lag=self.lag, multiplier=self.multiplier)
        corrected = torch._foreach_sub(list(params), state.slots["anchor"])
        torch._foreach_mul_(corrected, alpha)
        torch._foreach_add_(corrected, state.slots["average"])
        return list(corrected)
