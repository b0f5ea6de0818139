"""Weights the samples of a batch: losses (N,) -> weights (N,)."""

from lightning_objectives.weighting.loss_based import LossBasedReweighting, loss_based_weights

__all__ = ["LossBasedReweighting", "loss_based_weights"]
