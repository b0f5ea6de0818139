"""Adds the distance to a teacher to the loss: (student, teacher) -> (N,)."""

from lightning_objectives.distillation.attention_transfer import AttentionTransfer, attention_distance
from lightning_objectives.distillation.binary_kl import BinaryKL, binary_kl
from lightning_objectives.distillation.dual_head import DualHead, dual_head_loss
from lightning_objectives.distillation.fit_nets import FitNets
from lightning_objectives.distillation.vanilla_kd import VanillaKD, vanilla_kd

__all__ = [
    "AttentionTransfer",
    "BinaryKL",
    "DualHead",
    "FitNets",
    "VanillaKD",
    "attention_distance",
    "binary_kl",
    "dual_head_loss",
    "vanilla_kd",
]
