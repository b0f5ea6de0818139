"""Callbacks that a module brings, carried past Lightning's rule that only one of a class stays."""

from collections.abc import Callable
from typing import Any

from lightning_objectives._trainer.callback import Callback

CARRIED = "module:"
"""What the state key of a callback begins with that a module brings."""


class Carried(Callback):
    """Carries a callback that a module brings, past Lightning's rule that it drops the Trainer's of the same class.

    Every hook goes to the callback that is carried; a second fit replaces the carriers of the first.
    """

    def __init__(self, carried: Callback) -> None:
        self.carried = carried

    @property
    def state_key(self) -> str:
        """Apart from the same callback given to the Trainer."""
        return CARRIED + self.carried.state_key


def _forward(name: str) -> Callable[..., Any]:
    def hook(self: Carried, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.carried, name)(*args, **kwargs)

    return hook


for _name in dir(Callback):
    if _name.startswith("on_") or _name in ("setup", "teardown", "state_dict", "load_state_dict"):
        setattr(Carried, _name, _forward(_name))
