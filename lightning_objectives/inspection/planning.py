"""Says what callbacks would be plugged in where, without a training step."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from lightning_objectives._step.member import Member
from lightning_objectives.inspection.trial import Trials
from lightning_objectives.inspection.verdicts import attempt, name_of


def plan_of(trials: Trials, callbacks: Sequence[Any], strategy: Any) -> list[str]:
    """The line that a fit tells of its training step, and one for each callback that acts elsewhere.

    Args:
        trials: of the module.
        callbacks: this package's callbacks of the training.
        strategy: that of the training.

    Raises:
        Exception: the refusal of a callback, or an error of the module's setup.
    """
    outcome = attempt(trials, callbacks, {}, strategy, trains=False)
    if outcome.error is not None:
        raise outcome.error
    elsewhere = [callback for callback in callbacks if not isinstance(callback, Member)]
    return [*([outcome.plan] if outcome.plan else []), *(f"{name_of(c)}: {_purpose(c)}" for c in elsewhere)]


def _purpose(callback: Any) -> str:
    """The first sentence of a callback's documentation."""
    text = (inspect.getdoc(type(callback)) or "").partition("\n\n")[0]
    return re.sub(r":\w+:`+([^`]*)`+", r"\1", " ".join(text.split()))
