"""Every plug-in under everything that the Trainer does; for callbacks and methods of one's own, too."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning_objectives.kinds import Method
from lightning_objectives.testing.conformance.case import Case
from lightning_objectives.testing.conformance.check import Condition, Trial, outcome
from lightning_objectives.testing.conformance.conditions import conditions
from lightning_objectives.testing.conformance.memory import Memory
from lightning_objectives.testing.conformance.plug_ins import PlugIn, every_method, exemplars, of_method

__all__ = [
    "Case",
    "Condition",
    "Memory",
    "PlugIn",
    "Trial",
    "assert_conforms",
    "conditions",
    "every_method",
    "exemplars",
    "outcome",
]


def assert_conforms(
    plug_in: Method | Callable[[], Any], *, only: Sequence[str] | None = None, **case: Any
) -> dict[str, str]:
    """Try a plug-in under the conditions of the Trainer, each with several small trainings on the CPU.

    Args:
        plug_in: a method of one of the kinds, or a function that makes a callback, or a list of them, anew.
        only: the names of the conditions; by default all of :func:`conditions`.
        case: what is trained, the settings of :class:`Case`: ``module=`` and ``data=`` of your own, say.

    Returns:
        ``pass``, or ``refuses: ...`` with the reason, by condition.

    Raises:
        AssertionError: a condition does not hold, with a sentence that says which and why.
        ValueError: ``only`` names no condition.

    Example:
        >>> from lightning_objectives.averaging import EMA
        >>> assert_conforms(EMA(decay=0.9), only=["float32"])
        {'float32': 'pass'}
    """
    known = {condition.name: condition for condition in conditions()}
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ValueError(f"only={unknown} names no condition; there are {', '.join(known)}.")
    row = of_method(plug_in) if isinstance(plug_in, Method) else PlugIn("the plug-in", lambda _: _listed(plug_in()))
    chosen = [known[name] for name in known if only is None or name in only]
    memory = Memory()
    return {condition.name: outcome(condition, Trial(row, Case(**case), memory)) for condition in chosen}


def _listed(made: Any) -> list[Any]:
    return list(made) if isinstance(made, (list, tuple)) else [made]
