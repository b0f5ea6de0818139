"""Differences paired by seed, their intervals, and the rule by which a word is said of them.

The rule was written before the first run. One comparison is a *gain* where the whole 95 % interval of the mean
difference is on the better side and at least nine in ten seeds are; it *hurts* where the same holds of the worse side;
else it is *no gain*. The second condition is there because a percentile bootstrap of five values is too narrow: alone
it would call every sixth difference of pure chance one. With fewer than five seeds the word is *not shown*.

Of a claim: *gain* if at least half of its comparisons are gains and none hurts, *hurts* if some hurt and none is a
gain, *no gain* if there is neither, *mixed* otherwise; *not shown* while any comparison that was promised is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEAST_SEEDS = 5
AGREEING = 0.9


@dataclass(frozen=True)
class Difference:
    """The mean over seeds of one arm's value less the other's, and its 95 % bootstrap interval."""

    values: tuple[float, ...]
    mean: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """By the rule, of a measure of which less is better."""
        if len(self.values) < LEAST_SEEDS:
            return "not shown"
        below = sum(value < 0 for value in self.values) / len(self.values)
        above = sum(value > 0 for value in self.values) / len(self.values)
        if self.high < 0 and below >= AGREEING:
            return "gain"
        return "hurts" if self.low > 0 and above >= AGREEING else "no gain"


def paired(arm: Sequence[float], against: Sequence[float]) -> Difference:
    """The difference of values that belong together in pairs; the same resamples at every call."""
    if len(arm) != len(against) or not len(arm):
        raise ValueError(f"{len(arm)} values cannot be paired with {len(against)}.")
    values = np.asarray(arm, float) - np.asarray(against, float)
    rows = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[rows].mean(1), [2.5, 97.5])
    return Difference(tuple(values.tolist()), float(values.mean()), float(low), float(high))


def verdict(words: Sequence[str]) -> str:
    """The word for a claim, from those of its comparisons."""
    gains, losses = words.count("gain"), words.count("hurts")
    if not words or "not shown" in words:
        return "not shown"
    if losses:
        return "mixed" if gains else "hurts"
    if not gains:
        return "no gain"
    return "gain" if 2 * gains >= len(words) else "mixed"
