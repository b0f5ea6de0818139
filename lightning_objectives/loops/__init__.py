"""What a training loop of your own calls, with plain PyTorch or Lightning Fabric."""

from lightning_objectives.loops.survey import survey_data

__all__ = ["survey_data"]
