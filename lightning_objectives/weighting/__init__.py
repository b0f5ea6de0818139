"""Weights the samples of a batch: losses (N,) -> weights (N,)."""

from lightning_objectives.weighting.constrained_learning import ConstrainedLearning
from lightning_objectives.weighting.cvar import CVaR, cvar_weights
from lightning_objectives.weighting.difficulty_curriculum import DifficultyCurriculum
from lightning_objectives.weighting.doubly_robust import DoublyRobustReweighting
from lightning_objectives.weighting.dr_rho import DRRho, excess_loss_weights
from lightning_objectives.weighting.feasible_learning import FeasibleLearning, ascended_multipliers
from lightning_objectives.weighting.focal_weights import FocalWeights, focal_weights
from lightning_objectives.weighting.group_dro import GroupDRO
from lightning_objectives.weighting.jtt import JTT
from lightning_objectives.weighting.learnability import LearnabilitySelection
from lightning_objectives.weighting.loss_based import LossBasedReweighting, loss_based_weights
from lightning_objectives.weighting.self_paced import SelfPaced, self_paced_weights
from lightning_objectives.weighting.small_loss import SmallLossSelection, small_loss_weights
from lightning_objectives.weighting.spectral_risk import SpectralRisk, spectral_risk_weights

__all__ = [
    "JTT",
    "CVaR",
    "ConstrainedLearning",
    "DRRho",
    "DifficultyCurriculum",
    "DoublyRobustReweighting",
    "FeasibleLearning",
    "FocalWeights",
    "GroupDRO",
    "LearnabilitySelection",
    "LossBasedReweighting",
    "SelfPaced",
    "SmallLossSelection",
    "SpectralRisk",
    "ascended_multipliers",
    "cvar_weights",
    "excess_loss_weights",
    "focal_weights",
    "loss_based_weights",
    "self_paced_weights",
    "small_loss_weights",
    "spectral_risk_weights",
]
