"""Replaces the model's criterion by another per-sample loss: (logits, target) -> (N,)."""

from lightning_objectives.losses.adaptive_ldr import AdaptiveLDRLoss, adaptive_ldr_loss, adaptive_temperatures
from lightning_objectives.losses.label_smoothing import LabelSmoothingLoss, label_smoothing_loss
from lightning_objectives.losses.ldr import LDRLoss, ldr_loss, score_gaps

__all__ = [
    "AdaptiveLDRLoss",
    "LDRLoss",
    "LabelSmoothingLoss",
    "adaptive_ldr_loss",
    "adaptive_temperatures",
    "label_smoothing_loss",
    "ldr_loss",
    "score_gaps",
]
