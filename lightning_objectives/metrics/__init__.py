"""Measures calibration, accuracy, features and the detection of other inputs, with metrics of torchmetrics."""

from lightning_objectives.metrics._defaults import default_metrics, regression_metrics, set_metrics
from lightning_objectives.metrics._rows import ClassificationRows, classification_rows
from lightning_objectives.metrics.adaptive_calibration_error import AdaptiveCalibrationError, adaptive_calibration_error
from lightning_objectives.metrics.aurc import AURC, aurc
from lightning_objectives.metrics.brier_score import BrierScore, brier_score
from lightning_objectives.metrics.calibration_error import CalibrationError, calibration_error
from lightning_objectives.metrics.cka import CKA, linear_cka
from lightning_objectives.metrics.classwise_calibration_error import (
    ClasswiseCalibrationError,
    classwise_calibration_error,
)
from lightning_objectives.metrics.false_head_rate import FalseHeadRate, false_head_rate
from lightning_objectives.metrics.margin_error import MarginError, margin_error
from lightning_objectives.metrics.negative_log_likelihood import NegativeLogLikelihood, negative_log_likelihood
from lightning_objectives.metrics.neural_collapse import NeuralCollapse, neural_collapse
from lightning_objectives.metrics.ood_detection import OODDetection, fpr_at_95_tpr, ood_scores
from lightning_objectives.metrics.rank_me import RankMe, rank_me
from lightning_objectives.metrics.stable_rank import StableRank, stable_rank
from lightning_objectives.metrics.top_k_accuracy import TopKAccuracy, top_k_accuracy

__all__ = [
    "AURC",
    "CKA",
    "AdaptiveCalibrationError",
    "BrierScore",
    "CalibrationError",
    "ClassificationRows",
    "ClasswiseCalibrationError",
    "FalseHeadRate",
    "MarginError",
    "NegativeLogLikelihood",
    "NeuralCollapse",
    "OODDetection",
    "RankMe",
    "StableRank",
    "TopKAccuracy",
    "adaptive_calibration_error",
    "aurc",
    "brier_score",
    "calibration_error",
    "classification_rows",
    "classwise_calibration_error",
    "default_metrics",
    "false_head_rate",
    "fpr_at_95_tpr",
    "linear_cka",
    "margin_error",
    "negative_log_likelihood",
    "neural_collapse",
    "ood_scores",
    "rank_me",
    "regression_metrics",
    "set_metrics",
    "stable_rank",
    "top_k_accuracy",
]
