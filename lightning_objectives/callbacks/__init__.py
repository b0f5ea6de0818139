"""The callbacks: one per kind, and the ready-made ones."""

from lightning_objectives.callbacks.add_regularizer import AddRegularizer
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.callbacks.combine_terms import CombineTerms
from lightning_objectives.callbacks.distill import Distill
from lightning_objectives.callbacks.log_metrics import LogMetrics
from lightning_objectives.callbacks.named import (
    BEMACallback,
    DualHeadKDCallback,
    EMACallback,
    LossReweightingCallback,
    MultiSampleDropoutCallback,
)
from lightning_objectives.callbacks.replace_loss import ReplaceLoss
from lightning_objectives.callbacks.restore_random_state import RestoreRandomState
from lightning_objectives.callbacks.reweight_samples import ReweightSamples
from lightning_objectives.callbacks.transform_batch import TransformBatch
from lightning_objectives.callbacks.wrap_head import WrapHead

__all__ = [
    "AddRegularizer",
    "AverageWeights",
    "BEMACallback",
    "CombineTerms",
    "Distill",
    "DualHeadKDCallback",
    "EMACallback",
    "LogMetrics",
    "LossReweightingCallback",
    "MultiSampleDropoutCallback",
    "ReplaceLoss",
    "RestoreRandomState",
    "ReweightSamples",
    "TransformBatch",
    "WrapHead",
]
