"""Says how far a training has come."""

from typing import Any


def progress_of(trainer: Any) -> float:
    """The part of the training that is done, in [0, 1], by optimizer steps.

    Raises:
        ValueError: the training has no end.
    """
    total = trainer.estimated_stepping_batches
    if total == float("inf"):
        raise ValueError("The length of the training is unknown, so 'progress' is too: set max_steps or max_epochs.")
    return min(1.0, float(trainer.global_step / max(1, total)))
