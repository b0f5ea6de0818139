"""Laws of the weights of samples."""

import torch

from lightning_objectives.kinds import Weighting
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.signals import call, example_signals, require_grad, take_rows


def one_weight_a_sample_and_their_mean_is_one(method: Weighting) -> None:
    """N losses give N weights with the mean 1, for N of 1, 2 and 7."""
    for rows in (1, 2, 7):
        weights = call(method, example_signals(rows=rows))
        require(weights.shape == (rows,), method, f"{rows} losses need {rows} weights, not {tuple(weights.shape)}.")
        require(close(weights.mean(), torch.tensor(1.0)), method, f"the mean must be 1, not {weights.mean():.6g}.")


def equal_samples_weigh_the_same(method: Weighting) -> None:
    """Samples with equal losses and equal other signals all have the weight 1."""
    weights = call(method, take_rows(example_signals(), torch.zeros(6, dtype=torch.long)))
    require(close(weights, torch.ones(6)), method, f"equal samples must all weigh 1, not {weights.tolist()}.")


def no_gradient_flows_through_the_weights(method: Weighting) -> None:
    """The weights are constants for the optimizer."""
    weights = call(method, require_grad(example_signals(), "losses", "logits", "features"))
    require(not weights.requires_grad, method, "no gradient may flow through the weights: detach the losses.")


def one_bad_loss_leaves_the_other_weights_finite(method: Weighting) -> None:
    """A NaN or an infinity in one sample leaves the weights of the others finite."""
    for bad in (float("nan"), float("inf")):
        signals = example_signals()
        signals["losses"][1] = bad
        weights = call(method, signals)
        others = torch.cat([weights[:1], weights[2:]])
        require(others.isfinite().all(), method, f"one loss of {bad} must leave the others finite, not {others}.")
