"""What a training loop of your own calls, with plain PyTorch or Lightning Fabric."""

from lightning_objectives.loops.average import Average
from lightning_objectives.loops.perturbed import perturbed_backward
from lightning_objectives.loops.sample_memory import SampleMemory
from lightning_objectives.loops.sharpness import sharpness
from lightning_objectives.loops.survey import survey_data

__all__ = ["Average", "SampleMemory", "perturbed_backward", "sharpness", "survey_data"]
