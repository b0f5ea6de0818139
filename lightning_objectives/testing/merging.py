"""Laws of the merges."""

from functools import partial

import torch

from lightning_objectives.kinds import Merge
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.shapes import refuses

STEPS = ([5], [10, 20], [100, 200, 300, 400], [1, 2, 4, 8, 16], list(range(0, 160, 10)))
"""Few and many checkpoints, evenly and unevenly spaced."""


def one_finite_coefficient_a_checkpoint(merge: Merge) -> None:
    """There is one finite coefficient for each checkpoint, and a single checkpoint gets the coefficient 1."""
    for steps in STEPS:
        shares = merge.coefficients(steps)
        fits = shares.shape == (len(steps),) and bool(shares.isfinite().all())
        require(fits, merge, f"the checkpoints {steps} must have one finite coefficient each, not {shares}.")
    require(close(merge.coefficients([5]), torch.ones(1)), merge, "one checkpoint must have the coefficient 1.")


def the_coefficients_sum_to_one(merge: Merge) -> None:
    """The coefficients sum to 1, because the merge would otherwise shrink or stretch the weights."""
    for steps in STEPS:
        total = float(merge.coefficients(steps).sum())
        require(abs(total - 1) < 1e-6, merge, f"the coefficients of {steps} must sum to 1, not to {total}.")


def identical_checkpoints_merge_into_themselves(merge: Merge) -> None:
    """The merge of identical checkpoints is that checkpoint."""
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in STEPS:
        merged = torch.einsum("k,k...->...", merge.coefficients(steps).double(), torch.stack([weights] * len(steps)))
        require(close(merged, weights), merge, f"identical checkpoints at {steps} must merge into themselves.")


def only_the_distances_of_the_steps_matter(merge: Merge) -> None:
    """Checkpoints with the same distances later in a training have the same coefficients."""
    for steps in STEPS:
        later = merge.coefficients([step + 1000 for step in steps])
        require(close(later, merge.coefficients(steps)), merge, f"{steps}, 1000 steps later, must weigh the same.")


def steps_that_do_not_increase_are_refused(merge: Merge) -> None:
    """No steps, steps that repeat or fall, and numbers that are not whole are a ValueError that shows them."""
    for steps in ([], [10, 10], [20, 10], [0.5, 1.5]):
        refuses(partial(merge.coefficients, steps), merge, f"the steps {steps}", f"steps={steps}")  # type: ignore[arg-type]  # numbers that are not whole
