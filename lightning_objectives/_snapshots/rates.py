"""Checks the learning rates between snapshots, because a merge stands for a decay from a constant rate."""

from collections.abc import Iterable, Sequence

from lightning_objectives._trainer.lightning import rank_zero_warn
from lightning_objectives._weights.optimizer_steps import Rates


def varying_rates(intervals: Iterable[Rates], *, tolerance: float = 0.01) -> Rates:
    """Find the groups whose learning rate varied by more than ``tolerance`` over all intervals.

    >>> varying_rates([{"0.0": [0.1, 0.1]}, {"0.0": [0.05, 0.1]}])
    {'0.0': [0.05, 0.1]}
    """
    total: Rates = {}
    for rates in intervals:
        for group, (low, high) in rates.items():
            before = total.get(group, [low, high])
            total[group] = [min(low, before[0]), max(high, before[1])]
    return {group: [low, high] for group, (low, high) in total.items() if high > low * (1 + tolerance)}


def warn_of_varying_rates(intervals: Iterable[Rates], steps: Sequence[int]) -> bool:
    """Warn if a learning rate varied between the snapshots of a merge, and return whether it did."""
    rates = varying_rates(intervals)
    if rates:
        rank_zero_warn(
            f"The learning rate varied by more than 1 % between the snapshots {list(steps)} that are merged: {rates} "
            "(least, greatest, by optimizer.group). A merge stands for a decay from a constant rate, so it gains "
            "little if the rate decays as well. Use a constant schedule, or a later start_step."
        )
    return bool(rates)
