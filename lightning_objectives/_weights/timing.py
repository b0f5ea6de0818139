"""Says after which optimizer steps, or after which epochs, something begins and is repeated."""

from dataclasses import dataclass
from typing import Any, NamedTuple


class Moment(NamedTuple):
    """How far a training has come: its optimizer steps, and its completed epochs."""

    steps: int = 0
    epochs: int = 0


BEGINNING = Moment()
"""Of the training."""
NEVER = Moment(-1, -1)
"""Before something has begun."""


@dataclass(frozen=True)
class Timing:
    """Tells when something begins and when it is due again, each in optimizer steps or in epochs.

    If each epoch takes S steps, E epochs are the same as E * S steps.

    Args:
        start_step: the number of steps after which it begins; 0 if neither start is given.
        every_n_steps: steps between two times; ``default_steps`` if neither interval is given.
        start_epoch: the number of completed epochs after which it begins.
        every_n_epochs: completed epochs between two times.
        default_steps: the interval by default.

    Raises:
        ValueError: a setting outside its range, or the same in steps and in epochs.

    Example:
        >>> timing = Timing(start_epoch=2, every_n_steps=3)
        >>> timing.begun(Moment(steps=40, epochs=1)), timing.begun(Moment(steps=60, epochs=2))
        (False, True)
        >>> timing.due(Moment(61, 2), Moment(62, 2), since=Moment(60, 2))
        False
        >>> timing.due(Moment(62, 2), Moment(63, 2), since=Moment(60, 2))
        True
        >>> timing
        start_epoch=2 and every_n_steps=3
    """

    start_step: int | None = None
    every_n_steps: int | None = None
    start_epoch: int | None = None
    every_n_epochs: int | None = None
    default_steps: int = 1

    def __post_init__(self) -> None:
        for steps, epochs, least in (("start_step", "start_epoch", 0), ("every_n_steps", "every_n_epochs", 1)):
            given = {name: getattr(self, name) for name in (steps, epochs) if getattr(self, name) is not None}
            for name, value in given.items():
                if value < least:
                    raise ValueError(f"{name}={value} must be >= {least}.")
            if len(given) > 1:
                both = " and ".join(f"{name}={value}" for name, value in given.items())
                raise ValueError(f"{both} say the same in two units. Use one of them.")
        if self.start_epoch is None:
            object.__setattr__(self, "start_step", self.start_step or 0)
        if self.every_n_epochs is None:
            object.__setattr__(self, "every_n_steps", self.every_n_steps or self.default_steps)

    @property
    def in_epochs(self) -> bool:
        """Whether epochs matter."""
        return self.start_epoch is not None or self.every_n_epochs is not None

    def settings(self) -> dict[str, int]:
        """What was chosen, by name: one start and one interval."""
        names = ("start_step", "start_epoch", "every_n_steps", "every_n_epochs")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def in_steps(self, steps_per_epoch: int) -> "Timing":
        """The same timing, with each epoch as so many steps."""
        return Timing(
            self.start_step if self.start_epoch is None else self.start_epoch * steps_per_epoch,
            self.every_n_steps if self.every_n_epochs is None else self.every_n_epochs * steps_per_epoch,
        )

    def begun(self, now: Moment) -> bool:
        """Whether it has begun."""
        if self.start_epoch is not None:
            return now.epochs >= self.start_epoch
        return now.steps >= (self.start_step or 0)

    def due(self, before: Moment, now: Moment, since: Moment = BEGINNING) -> bool:
        """Whether it is due between two moments; the interval is counted from ``since``."""
        if self.every_n_steps == 1:
            return now.steps > before.steps
        unit, every = (0, self.every_n_steps or 1) if self.every_n_epochs is None else (1, self.every_n_epochs)
        return (now[unit] - since[unit]) // every > (before[unit] - since[unit]) // every

    def earlier(self, now: Moment, times: int) -> Moment:
        """The moment that lies so many intervals before, if the training was as fast then."""
        if self.every_n_epochs is not None:
            epochs = max(0, now.epochs - times * self.every_n_epochs)
            return Moment(now.steps * epochs // max(now.epochs, 1), epochs)
        steps = max(0, now.steps - times * (self.every_n_steps or 1))
        return Moment(steps, now.epochs * steps // max(now.steps, 1))

    def __repr__(self) -> str:
        return " and ".join(f"{name}={value}" for name, value in self.settings().items())


EACH_STEP = Timing()
"""From the beginning on."""


class Epochs:
    """Counts the epochs of a training whose last batch was trained, from the hook of that batch on.

    An epoch that ``max_steps`` or ``should_stop`` ends before its last batch does not count.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Let the training go."""
        self._trainer: Any = None
        self._running = -1

    def note(self, trainer: Any) -> None:
        """Note which epoch is running, at the beginning of each batch."""
        # Lightning's own counts change before `is_last_batch` does, and differ after a resume.
        self._trainer, self._running = trainer, trainer.current_epoch

    def completed(self) -> int:
        """How many epochs are completed, at the end of a batch or of an epoch; 0 if this one is not."""
        if self._trainer is None:
            return 0
        batches = self._trainer.fit_loop.epoch_loop.batch_progress
        trained = batches.is_last_batch and batches.current.processed == batches.current.ready
        return self._running + 1 if trained else 0
