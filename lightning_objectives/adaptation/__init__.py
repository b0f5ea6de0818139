"""Adapts a trained network to the test batches: statistics, weights or predictions."""

from lightning_objectives.adaptation.batch_norm_adaptation import BatchNormAdaptation, mixed_statistics
from lightning_objectives.adaptation.frechet_mean_predictor import FrechetMeanPredictor, frechet_mean_logits
from lightning_objectives.adaptation.lame import LAME, feature_affinity, lame_logits
from lightning_objectives.adaptation.mixed_classifier import MixedClassifier, mixed_logits
from lightning_objectives.adaptation.sar import SAR, reliable_rows
from lightning_objectives.adaptation.tent import TENT, softmax_entropy

__all__ = [
    "LAME",
    "SAR",
    "TENT",
    "BatchNormAdaptation",
    "FrechetMeanPredictor",
    "MixedClassifier",
    "feature_affinity",
    "frechet_mean_logits",
    "lame_logits",
    "mixed_logits",
    "mixed_statistics",
    "reliable_rows",
    "softmax_entropy",
]
