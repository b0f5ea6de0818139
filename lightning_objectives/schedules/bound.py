"""The bound of convex optimization for a learning rate schedule."""

import copy
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler


def schedule_rates(schedule: LRScheduler, steps: int) -> list[float]:
    """Compute the learning rates of the first parameter group over the next optimizer steps; changes nothing.

    Args:
        schedule: any schedule of torch that needs no metric.
        steps: how many, >= 1.

    Returns:
        one rate for each step.

    Raises:
        ValueError: ``steps`` below 1.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule_rates(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), 3)
        [1.0, 0.5, 0.25]
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be >= 1.")
    optimizer = schedule.optimizer
    weights = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    schedule = copy.deepcopy(schedule, {**weights, id(optimizer.state): {}})  # a copy of neither weights nor moments
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        with warnings.catch_warnings():
            # The weights must stay as they are, so nobody calls the optimizer.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step|Seems like `optimizer.step")
            schedule.step()
    return rates


class ScheduleBound:
    r"""Ranks schedules, and finds their best peak, before any training, by a bound that real losses follow closely.

    For rates :math:`\gamma s_t` in T steps of a convex problem, at the distance D from its solution at the start, with
    gradients of the norms :math:`G_t`, the mean loss of the last weights is above the best one by at most

    .. math::
        \Omega(\gamma) = \frac{D^2}{2 \gamma \sum_t s_t} + \frac{\gamma}{2} \left[\frac{\sum_t s_t^2 G_t^2}{\sum_t s_t}
        + \sum_{k=1}^{T-1} \frac{s_k}{\sum_{t > k} s_t} \cdot \frac{\sum_{t \ge k} s_t^2 G_t^2}{\sum_{t \ge k} s_t}
        \right]

    Args:
        rates: :math:`s_t \ge 0`, the rates of all steps, as :func:`schedule_rates` gives them, or the factors of a
            schedule. Zeros at the end do not count, because no step follows from them.
        gradient_norms: :math:`G_t > 0`, one for all steps, or one for each.
        distance: D > 0.

    Raises:
        ValueError: rates that are negative, not finite, or all zero, or other settings outside their range.

    When to use: to compare shapes and lengths of a schedule, and to carry a tuned peak to another one: multiply it by
    the ratio of the two values of ``best_peak``, in which D and one G for all steps cancel. If a training is extended,
    choose the longer schedule whose ``best_peak`` is that of the first, and keep the peak.
    Cost: a few sums over the steps.
    Interactions: the theory is that of SGD on a convex problem. A last rate far below the one before makes the bound
    large: let the decay end at 0, or above.

    Example:
        >>> flat, falling = ScheduleBound([1.0] * 100), ScheduleBound([1 - t / 100 for t in range(100)])
        >>> round(flat.best_value, 4), round(falling.best_value, 4)
        (0.2485, 0.2036)
        >>> round(falling.best_peak / flat.best_peak, 4)  # what to multiply a tuned peak by
        2.4172

    Paper: Schaipp et al., The Surprising Agreement Between Convex Optimization Theory and Learning-Rate Scheduling for
    Large Model Training, ICML 2025, https://arxiv.org/abs/2501.18965. The bound is that of Defazio et al., When, Why
    and How Much? Adaptive Learning Rate Scheduling by Refinement, 2023, theorem 10, https://arxiv.org/abs/2310.07831.
    Both as in the authors' code (https://github.com/fabian-sp/lr-scheduling, ``src/scheduled/schedules/base.py``).

    Differs from the code: the sums from a step on are added up from the end, so that they lose no digits.
    """

    def __init__(
        self, rates: Sequence[float], *, gradient_norms: float | Sequence[float] = 1.0, distance: float = 1.0
    ) -> None:
        s = torch.tensor(rates, dtype=torch.float64)
        if s.dim() != 1 or not s.any() or not ((s >= 0) & s.isfinite()).all():
            raise ValueError(f"rates={_short(rates)} must be finite numbers >= 0, one for each step, some of them > 0.")
        norms = torch.tensor(gradient_norms, dtype=torch.float64)
        if norms.shape not in ((), s.shape) or not ((norms > 0) & norms.isfinite()).all():
            raise ValueError(
                f"gradient_norms={_short(gradient_norms)} must be a finite number > 0, or {len(s)} of them: one for "
                "each step."
            )
        if not 0 < distance < float("inf"):
            raise ValueError(f"distance={distance} must be finite and > 0.")
        count = int(s.nonzero().max()) + 1
        s, energy = s[:count], (s * norms).square()[:count]
        rest, rest_energy = _from_each_on(s), _from_each_on(energy)
        ratios = s[:-1] / rest[1:] * rest_energy[:-1] / rest[:-1]
        self._distance_term = float(distance**2 / (2 * rest[0]))
        self._step_term = float((rest_energy[0] / rest[0] + ratios.sum()) / 2)

    def value(self, peak: float = 1.0) -> float:
        r"""The bound :math:`\Omega` at the peak :math:`\gamma > 0`; 1 takes the rates as they are.

        Raises:
            ValueError: a peak that is not > 0.
        """
        if not 0 < peak < float("inf"):
            raise ValueError(f"peak={peak} must be finite and > 0.")
        return self._distance_term / peak + self._step_term * peak

    @property
    def best_peak(self) -> float:
        """The peak of the least bound."""
        return math.sqrt(self._distance_term / self._step_term)

    @property
    def best_value(self) -> float:
        """The least bound."""
        return 2 * math.sqrt(self._distance_term * self._step_term)


def _from_each_on(values: Tensor) -> Tensor:
    """The sum of each value and all after it."""
    return values.flip(0).cumsum(0).flip(0)


def _short(values: float | Sequence[float]) -> str:
    return repr(values) if isinstance(values, float) or len(values) < 9 else f"[{values[0]}, ..., {values[-1]}]"
