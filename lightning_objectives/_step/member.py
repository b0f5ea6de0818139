"""What the pipeline asks of every callback that registers with it."""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from torch import nn


class Member(Protocol):
    """A callback of the step, whatever its place."""

    place: ClassVar[str]
    criterion: str | None
    which: int | None
    head: str | None
    input: str | int | None

    @property
    def method(self) -> Callable[..., Any]:
        """The method that it places in the step."""

    @property
    def signals(self) -> tuple[str, ...]:
        """The names of the signals that the pipeline must have for it."""

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint."""

    def active(self, step: int) -> bool:
        """Whether it changes anything at this optimizer step."""

    def build(self, pipeline: Any, head: nn.Module | None) -> None:
        """Make what depends on the network's head."""
