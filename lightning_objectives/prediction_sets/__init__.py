"""Turns logits into sets of classes that hold the target with a chosen probability: logits -> sets."""

from lightning_objectives.prediction_sets._quantile import conformal_quantile
from lightning_objectives.prediction_sets.aps import APS, aps_scores
from lightning_objectives.prediction_sets.conformal_risk_control import ConformalRiskControl, risk_threshold
from lightning_objectives.prediction_sets.lac import LAC, lac_scores
from lightning_objectives.prediction_sets.raps import RAPS, raps_scores

__all__ = [
    "APS",
    "LAC",
    "RAPS",
    "ConformalRiskControl",
    "aps_scores",
    "conformal_quantile",
    "lac_scores",
    "raps_scores",
    "risk_threshold",
]
