"""Laws of the combinations of terms."""

import torch

from lightning_objectives.kinds import Combination
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.signals import call, example_signals


def one_weight_a_term(method: Combination) -> None:
    """K terms get K weights."""
    signals = example_signals()
    terms = len(signals["gradients"])
    weights = call(method, signals)
    require(weights.shape == (terms,), method, f"{terms} terms need {terms} weights, not {tuple(weights.shape)}.")


def one_term_alone_keeps_its_weight(method: Combination) -> None:
    """A single term gets the weight 1."""
    signals = example_signals()
    single = {name: signals[name][:1] for name in ("gradients", "terms")}
    try:
        alone = call(method, {**signals, **single})
    except ValueError as error:
        raise AssertionError(f"{method}: it must work with one term alone: {error}") from error
    require(close(alone, torch.ones(1)), method, f"one term alone must keep the weight 1, not {alone.tolist()}.")
