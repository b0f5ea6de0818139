"""Adds a term to the loss: signals -> (N,) or a scalar."""

from lightning_objectives.regularizers.confidence_penalty import ConfidencePenalty, confidence_penalty
from lightning_objectives.regularizers.early_learning import (
    EarlyLearningRegularization,
    early_learning_penalty,
    early_learning_targets,
)
from lightning_objectives.regularizers.input_gradient_penalty import InputGradientPenalty, input_gradient_penalty
from lightning_objectives.regularizers.jacobian_penalty import JacobianPenalty, jacobian_penalty
from lightning_objectives.regularizers.l2_sp import L2SP
from lightning_objectives.regularizers.log_partition_penalty import LogPartitionPenalty, log_partition_penalty
from lightning_objectives.regularizers.orthogonal_conv import OrthogonalConv, kernel_orthogonality, orthogonal_conv
from lightning_objectives.regularizers.r_drop import RDrop, r_drop, symmetric_kl
from lightning_objectives.regularizers.self_distillation import SelfDistillation, past_cross_entropy
from lightning_objectives.regularizers.spectral_decoupling import SpectralDecoupling, spectral_decoupling
from lightning_objectives.regularizers.spectral_regularizer import SpectralRegularizer, spectral_penalty
from lightning_objectives.regularizers.vat import VAT, adversarial_direction, virtual_adversarial_loss

__all__ = [
    "L2SP",
    "VAT",
    "ConfidencePenalty",
    "EarlyLearningRegularization",
    "InputGradientPenalty",
    "JacobianPenalty",
    "LogPartitionPenalty",
    "OrthogonalConv",
    "RDrop",
    "SelfDistillation",
    "SpectralDecoupling",
    "SpectralRegularizer",
    "adversarial_direction",
    "confidence_penalty",
    "early_learning_penalty",
    "early_learning_targets",
    "input_gradient_penalty",
    "jacobian_penalty",
    "kernel_orthogonality",
    "log_partition_penalty",
    "orthogonal_conv",
    "past_cross_entropy",
    "r_drop",
    "spectral_decoupling",
    "spectral_penalty",
    "symmetric_kl",
    "virtual_adversarial_loss",
]
