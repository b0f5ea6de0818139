"""Weights the terms of the loss: gradients of the terms -> weights."""

from lightning_objectives.combination.cagrad import CAGrad, cagrad_weights
from lightning_objectives.combination.gradient_alignment import GradientAlignment, gradient_alignment
from lightning_objectives.combination.mgda import MGDA, mgda_weights

__all__ = ["MGDA", "CAGrad", "GradientAlignment", "cagrad_weights", "gradient_alignment", "mgda_weights"]
