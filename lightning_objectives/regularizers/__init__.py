"""Adds a term to the loss: signals -> (N,) or a scalar."""

from lightning_objectives.regularizers.attention_entropy import AttentionEntropy, attention_concentration
from lightning_objectives.regularizers.augmix_consistency import AugMixConsistency, jensen_shannon_divergence
from lightning_objectives.regularizers.centre_loss import CentreLoss
from lightning_objectives.regularizers.conditional_mutual_information import (
    ConditionalMutualInformation,
    divergence_from_centroids,
)
from lightning_objectives.regularizers.confidence_penalty import ConfidencePenalty, confidence_penalty
from lightning_objectives.regularizers.distance_covariance import DistanceCovariance, distance_covariance
from lightning_objectives.regularizers.early_learning import (
    EarlyLearningRegularization,
    early_learning_penalty,
    early_learning_targets,
)
from lightning_objectives.regularizers.generalized_gaussian_prior import (
    GeneralizedGaussianPrior,
    gaussian_shape,
    generalized_gaussian_prior,
)
from lightning_objectives.regularizers.input_gradient_penalty import InputGradientPenalty, input_gradient_penalty
from lightning_objectives.regularizers.irm_v2 import IRMv2Penalty, irm_v2_penalty
from lightning_objectives.regularizers.jacobian_penalty import JacobianPenalty, jacobian_penalty
from lightning_objectives.regularizers.l2_sp import L2SP
from lightning_objectives.regularizers.log_partition_penalty import LogPartitionPenalty, log_partition_penalty
from lightning_objectives.regularizers.orthogonal_conv import OrthogonalConv, kernel_orthogonality, orthogonal_conv
from lightning_objectives.regularizers.r_drop import RDrop, r_drop, symmetric_kl
from lightning_objectives.regularizers.self_distillation import SelfDistillation, past_cross_entropy
from lightning_objectives.regularizers.spectral_decoupling import SpectralDecoupling, spectral_decoupling
from lightning_objectives.regularizers.spectral_regularizer import SpectralRegularizer, spectral_penalty
from lightning_objectives.regularizers.universal_self_kd import UniversalSelfKD
from lightning_objectives.regularizers.vat import VAT, adversarial_direction, virtual_adversarial_loss

__all__ = [
    "L2SP",
    "VAT",
    "AttentionEntropy",
    "AugMixConsistency",
    "CentreLoss",
    "ConditionalMutualInformation",
    "ConfidencePenalty",
    "DistanceCovariance",
    "EarlyLearningRegularization",
    "GeneralizedGaussianPrior",
    "IRMv2Penalty",
    "InputGradientPenalty",
    "JacobianPenalty",
    "LogPartitionPenalty",
    "OrthogonalConv",
    "RDrop",
    "SelfDistillation",
    "SpectralDecoupling",
    "SpectralRegularizer",
    "UniversalSelfKD",
    "adversarial_direction",
    "attention_concentration",
    "confidence_penalty",
    "distance_covariance",
    "divergence_from_centroids",
    "early_learning_penalty",
    "early_learning_targets",
    "gaussian_shape",
    "generalized_gaussian_prior",
    "input_gradient_penalty",
    "irm_v2_penalty",
    "jacobian_penalty",
    "jensen_shannon_divergence",
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
