"""Surgery: changes layers of the network for a training, or freezes them, without touching its code."""

from lightning_objectives.surgery.dropout_schedule import DropoutSchedule, dropout_factor
from lightning_objectives.surgery.fixed_simplex_classifier import FixedSimplexClassifier, simplex_vectors
from lightning_objectives.surgery.ghost_batch_norm import GhostBatchNorm
from lightning_objectives.surgery.layer_freezing import LayerFreezing
from lightning_objectives.surgery.stochastic_depth import StochasticDepth

__all__ = [
    "DropoutSchedule",
    "FixedSimplexClassifier",
    "GhostBatchNorm",
    "LayerFreezing",
    "StochasticDepth",
    "dropout_factor",
    "simplex_vectors",
]
