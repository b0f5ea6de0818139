"""The callbacks: one per kind, and the ready-made ones."""

from lightning_objectives.callbacks.adapt_at_test import AdaptAtTest
from lightning_objectives.callbacks.add_regularizer import AddRegularizer
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.callbacks.calibrate import Calibrate
from lightning_objectives.callbacks.change_layers import ChangeLayers
from lightning_objectives.callbacks.combine_terms import CombineTerms
from lightning_objectives.callbacks.distill import Distill
from lightning_objectives.callbacks.log_metrics import LogMetrics
from lightning_objectives.callbacks.merge_checkpoints import MergeCheckpoints
from lightning_objectives.callbacks.named import (
    BEMACallback,
    DualHeadKDCallback,
    EMACallback,
    LossReweightingCallback,
    MultiSampleDropoutCallback,
    WSMCallback,
)
from lightning_objectives.callbacks.perturb_weights import PerturbWeights
from lightning_objectives.callbacks.refer import Refer
from lightning_objectives.callbacks.replace_loss import ReplaceLoss
from lightning_objectives.callbacks.restore_random_state import RestoreRandomState
from lightning_objectives.callbacks.reweight_samples import ReweightSamples
from lightning_objectives.callbacks.survey_data import SurveyData
from lightning_objectives.callbacks.transform_batch import TransformBatch
from lightning_objectives.callbacks.transform_gradients import TransformGradients
from lightning_objectives.callbacks.wrap_head import WrapHead

__all__ = [
    "AdaptAtTest",
    "AddRegularizer",
    "AverageWeights",
    "BEMACallback",
    "Calibrate",
    "ChangeLayers",
    "CombineTerms",
    "Distill",
    "DualHeadKDCallback",
    "EMACallback",
    "LogMetrics",
    "LossReweightingCallback",
    "MergeCheckpoints",
    "MultiSampleDropoutCallback",
    "PerturbWeights",
    "Refer",
    "ReplaceLoss",
    "RestoreRandomState",
    "ReweightSamples",
    "SurveyData",
    "TransformBatch",
    "TransformGradients",
    "WSMCallback",
    "WrapHead",
]
