"""logits -> probabilities, post hoc."""

from lightning_objectives.calibration.temperature_scaling import TemperatureScaling, best_temperature

__all__ = ["TemperatureScaling", "best_temperature"]
