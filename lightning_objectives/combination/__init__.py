"""Weights the terms of the loss: gradients of the terms -> weights."""

from lightning_objectives.combination.gradient_alignment import GradientAlignment, gradient_alignment

__all__ = ["GradientAlignment", "gradient_alignment"]
