"""Turns logits into probabilities after training: logits -> probabilities."""

from lightning_objectives.calibration.bbq import BBQ, averaged_quantile_bins
from lightning_objectives.calibration.dirichlet_calibration import DirichletCalibration
from lightning_objectives.calibration.h_calibration import HCalibration, h_calibration_loss
from lightning_objectives.calibration.histogram_binning import HistogramBinning, binned_rates
from lightning_objectives.calibration.isotonic_calibration import IsotonicCalibration, isotonic_regression
from lightning_objectives.calibration.matrix_scaling import MatrixScaling, best_matrix_and_bias
from lightning_objectives.calibration.platt_scaling import PlattScaling, sigmoid_scale_and_bias
from lightning_objectives.calibration.spline_calibration import SplineCalibration, spline_recalibration
from lightning_objectives.calibration.temperature_scaling import TemperatureScaling, best_temperature
from lightning_objectives.calibration.vector_scaling import VectorScaling, best_scale_and_bias

__all__ = [
    "BBQ",
    "DirichletCalibration",
    "HCalibration",
    "HistogramBinning",
    "IsotonicCalibration",
    "MatrixScaling",
    "PlattScaling",
    "SplineCalibration",
    "TemperatureScaling",
    "VectorScaling",
    "averaged_quantile_bins",
    "best_matrix_and_bias",
    "best_scale_and_bias",
    "best_temperature",
    "binned_rates",
    "h_calibration_loss",
    "isotonic_regression",
    "sigmoid_scale_and_bias",
    "spline_recalibration",
]
