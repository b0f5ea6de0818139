"""Weights the terms of the loss: gradients or values of the terms -> weights."""

from lightning_objectives.combination.aligned_mtl import AlignedMTL, aligned_mtl_weights
from lightning_objectives.combination.cagrad import CAGrad, cagrad_weights
from lightning_objectives.combination.grad_norm import GradNorm
from lightning_objectives.combination.gradient_alignment import GradientAlignment, gradient_alignment
from lightning_objectives.combination.mgda import MGDA, mgda_weights
from lightning_objectives.combination.nash_mtl import NashMTL, nash_mtl_weights
from lightning_objectives.combination.pcgrad import PCGrad, pcgrad_weights
from lightning_objectives.combination.uncertainty_weighting import UncertaintyWeighting
from lightning_objectives.combination.upgrad import UPGrad, upgrad_weights

__all__ = [
    "MGDA",
    "AlignedMTL",
    "CAGrad",
    "GradNorm",
    "GradientAlignment",
    "NashMTL",
    "PCGrad",
    "UPGrad",
    "UncertaintyWeighting",
    "aligned_mtl_weights",
    "cagrad_weights",
    "gradient_alignment",
    "mgda_weights",
    "nash_mtl_weights",
    "pcgrad_weights",
    "upgrad_weights",
]
