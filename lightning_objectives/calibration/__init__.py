"""Turns logits into probabilities after training: logits -> probabilities."""

from lightning_objectives.calibration.temperature_scaling import TemperatureScaling, best_temperature

__all__ = ["TemperatureScaling", "best_temperature"]
