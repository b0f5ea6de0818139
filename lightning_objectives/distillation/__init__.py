"""Adds the distance to a teacher to the loss: (student, teacher) -> (N,)."""

from lightning_objectives.distillation.attention_transfer import AttentionTransfer, attention_distance
from lightning_objectives.distillation.balanced_divergence_kd import BalancedDivergenceKD, balanced_divergence_kd
from lightning_objectives.distillation.binary_kl import BinaryKL, binary_kl
from lightning_objectives.distillation.crd import CRD
from lightning_objectives.distillation.dist import DIST, dist_loss
from lightning_objectives.distillation.dkd import DKD, dkd
from lightning_objectives.distillation.dual_head import DualHead, dual_head_loss
from lightning_objectives.distillation.ensemble_teacher import EnsembleTeacher
from lightning_objectives.distillation.fit_nets import FitNets
from lightning_objectives.distillation.mutual_information import MutualInformationDistillation
from lightning_objectives.distillation.norm_direction import NormDirectionDistillation
from lightning_objectives.distillation.normalized_kd import NormalizedKD, normalized_kd
from lightning_objectives.distillation.pkt import PKT, pkt_loss
from lightning_objectives.distillation.rkd import RKD, rkd_loss
from lightning_objectives.distillation.similarity_preserving import SimilarityPreserving, similarity_preserving_loss
from lightning_objectives.distillation.sinkhorn_kd import SinkhornKD, sinkhorn_kd
from lightning_objectives.distillation.token_relation import TokenRelationDistillation
from lightning_objectives.distillation.vanilla_kd import VanillaKD, vanilla_kd
from lightning_objectives.distillation.vid import VID

__all__ = [
    "CRD",
    "DIST",
    "DKD",
    "PKT",
    "RKD",
    "VID",
    "AttentionTransfer",
    "BalancedDivergenceKD",
    "BinaryKL",
    "DualHead",
    "EnsembleTeacher",
    "FitNets",
    "MutualInformationDistillation",
    "NormDirectionDistillation",
    "NormalizedKD",
    "SimilarityPreserving",
    "SinkhornKD",
    "TokenRelationDistillation",
    "VanillaKD",
    "attention_distance",
    "balanced_divergence_kd",
    "binary_kl",
    "dist_loss",
    "dkd",
    "dual_head_loss",
    "normalized_kd",
    "pkt_loss",
    "rkd_loss",
    "similarity_preserving_loss",
    "sinkhorn_kd",
    "vanilla_kd",
]
