"""Carries the callbacks that a module brings past Lightning's rule that only one of a class stays."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lightning_objectives._trainer.callback import Callback

CARRIED = "module:"
"""The beginning of the state key of a callback that a module brings."""
C = TypeVar("C")


def callbacks_of(trainer: Any, cls: type[C]) -> list[C]:
    """Find the trainer's callbacks of a class in their order, also those that a module's mixin brings."""
    callbacks = [getattr(callback, "carried", callback) for callback in trainer.callbacks]
    return [callback for callback in callbacks if isinstance(callback, cls)]


class Carried(Callback):
    """Stands in for a callback that a module brings, because Lightning would drop the Trainer's of the same class.

    It passes every hook on to the callback that it carries. A second fit replaces the carriers of the first.
    """

    def __init__(self, carried: Callback) -> None:
        self.carried = carried

    @property
    def state_key(self) -> str:
        """Differs from the key of the same callback in the Trainer's list."""
        return CARRIED + self.carried.state_key


def _forward(name: str) -> Callable[..., Any]:
    def hook(self: Carried, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.carried, name)(*args, **kwargs)

    return hook


for _name in dir(Callback):
    if _name.startswith("on_") or _name in ("setup", "teardown", "state_dict", "load_state_dict"):
        setattr(Carried, _name, _forward(_name))


def saved_states(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Find the states of callbacks of one class in a checkpoint, whatever their settings, by their full keys.

    Args:
        checkpoint: the checkpoint, as Lightning loads it.
        name: the name that the keys of the class, and of its subclasses, begin with.
    """
    states = checkpoint.get("callbacks", {})
    return {key: state for key, state in states.items() if str(key).removeprefix(CARRIED).startswith(name)}


def none_is_of(state_key: str, states: Mapping[str, Any]) -> bool:
    """Whether there are states, but none of a callback with this key, whoever brought the callback.

    >>> none_is_of("EMA", {}), none_is_of("EMA", {"module:EMA": 1}), none_is_of("EMA", {"EMA2": 1})
    (False, False, True)
    """
    return bool(states) and states.keys().isdisjoint({state_key, CARRIED + state_key})
