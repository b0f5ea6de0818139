"""Moves the weights before the gradient is taken: gradients, weights -> offsets."""

from lightning_objectives.perturbations.asam import ASAM, asam_offsets
from lightning_objectives.perturbations.sam import SAM, sam_offsets
from lightning_objectives.perturbations.weight_noise import WeightNoise

__all__ = ["ASAM", "SAM", "WeightNoise", "asam_offsets", "sam_offsets"]
