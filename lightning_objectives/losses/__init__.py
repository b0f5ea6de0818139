"""Replaces the model's criterion by another per-sample loss: (logits, target) -> (N,)."""

from lightning_objectives.losses.adaptive_ldr import AdaptiveLDRLoss, adaptive_ldr_loss, adaptive_temperatures
from lightning_objectives.losses.ldr import LDRLoss, ldr_loss, score_gaps

__all__ = ["AdaptiveLDRLoss", "LDRLoss", "adaptive_ldr_loss", "adaptive_temperatures", "ldr_loss", "score_gaps"]
