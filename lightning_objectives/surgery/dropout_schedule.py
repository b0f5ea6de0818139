"""Dropout whose rate changes over the training."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_objectives.kinds import LayerPlace, Surgery

Schedule = Literal["early", "early_linear", "late", "curriculum"]


def dropout_factor(progress: float, *, schedule: Schedule = "early", turn: float = 1 / 6) -> float:
    r"""Compute the part of its rate that a dropout layer has when the part ``progress`` of the training is done.

    Args:
        progress: t, in [0, 1].
        schedule: ``"early"`` is 1 before the turn and 0 from it on; ``"early_linear"`` falls from 1 to 0 at the turn,
            :math:`1 - t / T`; ``"late"`` is 0 before the turn and 1 from it on; ``"curriculum"`` is
            :math:`1 - e^{-10 t}`.
        turn: T, in (0, 1]; not used by ``"curriculum"``.

    Raises:
        ValueError: an unknown schedule, or a turn outside (0, 1].

    Example:
        >>> dropout_factor(0.05, schedule="early_linear", turn=0.1)
        0.5
        >>> round(dropout_factor(0.1, schedule="curriculum"), 5)
        0.63212
    """
    _check(schedule, turn)
    if schedule == "curriculum":
        return 1 - math.exp(-10 * progress)
    if schedule == "late":
        return float(progress >= turn)
    if schedule == "early":
        return float(progress < turn)
    return max(0.0, 1 - progress / turn)


def _check(schedule: str, turn: float) -> None:
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule={schedule!r} must be one of {', '.join(map(repr, get_args(Schedule)))}.")
    if not 0 < turn <= 1:
        raise ValueError(f"turn={turn} must be in (0, 1]: the part of the training at which dropout begins or ends.")


class DropoutSchedule(Surgery):
    """Lets dropout act early, against underfitting, or late, against overfitting: its rate changes over the training.

    Each dropout layer has its own rate times :func:`dropout_factor` of the training's progress.

    Args:
        schedule: ``"early"``, ``"early_linear"``, ``"late"`` or ``"curriculum"``, see :func:`dropout_factor`.
        turn: the part of the training at which early dropout ends and late dropout begins, in (0, 1].

    Raises:
        ValueError: an unknown schedule, or a turn outside (0, 1]; in the training, a layer without a rate, or no end of
            the training.

    When to use: early dropout for networks that underfit, late dropout for those that overfit once they repeat data;
    the paper turns at 50 of 300 epochs.
    Cost: none.
    Interactions: it acts on ``nn.Dropout`` and its kin, and on layers that you name and that keep a rate under
    ``drop_prob``, as timm's DropPath does. Dropout inside of an attention is no layer, and keeps its rate. Of dropout
    that has the rate 0 nothing can come.

    Example:
        >>> import torch
        >>> layer, late = nn.Dropout(1.0), DropoutSchedule(schedule="late")
        >>> late.call(layer, LayerPlace(part_done=lambda: 0.1), layer.forward, torch.ones(2))
        tensor([1., 1.])

    Paper: Liu et al., Dropout Reduces Underfitting, ICML 2023, https://arxiv.org/abs/2303.01500; Morerio et al.,
    Curriculum Dropout, ICCV 2017, https://arxiv.org/abs/1703.06229. The factor 10 of the curriculum was not checked at
    the source.

    Differs from the code of the first paper: its linear schedule reaches 0 one step before the turn.
    """

    changes = (_DropoutNd,)
    family = "overfitting"
    by_process = "each process drops units of its own rows"
    example = {"schedule": "curriculum"}  # noqa: RUF012  # a ClassVar of the base

    def __init__(self, *, schedule: Schedule = "early", turn: float = 1 / 6) -> None:
        _check(schedule, turn)
        self.schedule = schedule
        self.turn = turn

    def check(self, layer: nn.Module, count: int) -> None:
        """Refuse a layer without a rate above 0."""
        if not getattr(layer, _rate_name(layer), 0):
            raise ValueError(
                f"{type(layer).__name__} has no dropout rate above 0 under 'p' or 'drop_prob'. Name dropout layers, "
                "and build them with the rate that they have at most."
            )

    def call(self, layer: nn.Module, place: LayerPlace, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the layer at the rate of this step."""
        name = _rate_name(layer)
        rate = getattr(layer, name)
        setattr(layer, name, rate * dropout_factor(place.part_done(), schedule=self.schedule, turn=self.turn))
        try:
            return inner(*args, **kwargs)
        finally:
            setattr(layer, name, rate)


def _rate_name(layer: nn.Module) -> str:
    return "drop_prob" if hasattr(layer, "drop_prob") else "p"
