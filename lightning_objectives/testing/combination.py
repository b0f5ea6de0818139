"""Laws of the combinations of terms."""

import torch

from lightning_objectives.kinds import Combination
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.signals import call, example_signals


def one_term_alone_keeps_its_weight(method: Combination) -> None:
    """K terms get K weights, and a single term gets the weight 1."""
    signals = example_signals()
    terms = len(signals["gradients"])
    weights = call(method, signals)
    require(weights.shape == (terms,), method, f"{terms} terms need {terms} weights, not {tuple(weights.shape)}.")
    alone = call(method, {**signals, "gradients": signals["gradients"][:1]})
    require(close(alone, torch.ones(1)), method, f"one term alone must keep the weight 1, not {alone.tolist()}.")
