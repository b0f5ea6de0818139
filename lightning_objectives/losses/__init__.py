"""Replaces the model's criterion by another per-sample loss: (logits, target) -> (N,)."""

from lightning_objectives.losses.adaptive_ldr import AdaptiveLDRLoss, adaptive_ldr_loss, adaptive_temperatures
from lightning_objectives.losses.anchored_sft import AnchoredSFTLoss, anchored_sft_loss
from lightning_objectives.losses.arc_face import ArcFaceLoss, arc_face_loss
from lightning_objectives.losses.asymmetric import AsymmetricLoss, asymmetric_loss
from lightning_objectives.losses.balanced_softmax import BalancedSoftmaxLoss, balanced_softmax_loss
from lightning_objectives.losses.bi_tempered import BiTemperedLoss, bi_tempered_loss, tempered_softmax
from lightning_objectives.losses.class_balanced import ClassBalancedLoss, class_balanced_loss, class_balanced_weights
from lightning_objectives.losses.comp_sum import CompSumLoss, comp_sum_loss
from lightning_objectives.losses.confusion_matrix import ConfusionMatrixLoss, confusion_matrix_loss
from lightning_objectives.losses.cos_face import CosFaceLoss, cos_face_loss
from lightning_objectives.losses.decoupled_softmax import DecoupledSoftmaxLoss, decoupled_softmax_loss
from lightning_objectives.losses.dice import DiceLoss, dice_loss
from lightning_objectives.losses.dynamic_fine_tuning import DynamicFineTuningLoss, dynamic_fine_tuning_loss
from lightning_objectives.losses.edit_invariant_sequence import EditInvariantSequenceLoss, edit_invariant_sequence_loss
from lightning_objectives.losses.f_divergence_sft import FDivergenceSFTLoss, f_divergence_sft_loss
from lightning_objectives.losses.fixed_predictor_rejection import FixedPredictorRejection
from lightning_objectives.losses.focal import FocalLoss, focal_loss
from lightning_objectives.losses.generalized_cross_entropy import (
    GeneralizedCrossEntropyLoss,
    generalized_cross_entropy_loss,
)
from lightning_objectives.losses.integrated_gain import IntegratedGainLoss, integrated_gain_loss
from lightning_objectives.losses.label_smoothing import LabelSmoothingLoss, label_smoothing_loss
from lightning_objectives.losses.ldam import LDAMLoss, ldam_loss
from lightning_objectives.losses.ldr import LDRLoss, ldr_loss, score_gaps
from lightning_objectives.losses.logit_adjusted import LogitAdjustedLoss, logit_adjusted_loss
from lightning_objectives.losses.lovasz_softmax import LovaszSoftmaxLoss, lovasz_loss
from lightning_objectives.losses.mann_whitney import MannWhitneyLoss, mann_whitney_loss
from lightning_objectives.losses.multi_focal_modifier import MultiFocalModifierLoss, multi_focal_modifier_loss
from lightning_objectives.losses.odd_k_out import OddKOutLoss, odd_k_out_loss
from lightning_objectives.losses.pass_at_n import PassAtNLoss, pass_at_n_loss
from lightning_objectives.losses.plackett_luce_distillation import (
    PlackettLuceDistillationLoss,
    plackett_luce_distillation_loss,
)
from lightning_objectives.losses.poly import PolyLoss, poly_loss
from lightning_objectives.losses.preference_oriented_sft import PreferenceOrientedSFTLoss, preference_oriented_sft_loss
from lightning_objectives.losses.probability_power import ProbabilityPowerLoss, probability_power_loss
from lightning_objectives.losses.progressive_purification import (
    ProgressivePurification,
    candidate_weights,
    purified_weights,
)
from lightning_objectives.losses.progressive_self_kd import ProgressiveSelfKD, progressive_self_kd_loss
from lightning_objectives.losses.self_adjusting_dice import SelfAdjustingDiceLoss, self_adjusting_dice_loss
from lightning_objectives.losses.sigmoid_focal import SigmoidFocalLoss, sigmoid_focal_loss
from lightning_objectives.losses.smooth_adversarial_comp_sum import (
    SmoothAdversarialCompSumLoss,
    smooth_adversarial_comp_sum_loss,
)
from lightning_objectives.losses.soft_score_label import SoftScoreLabelLoss, soft_score_label_loss, soft_score_labels
from lightning_objectives.losses.soft_top_k import SoftTopKLoss, soft_top_k_loss
from lightning_objectives.losses.stable_max import StableMaxLoss, stable_max_loss
from lightning_objectives.losses.symmetric_cross_entropy import SymmetricCrossEntropyLoss, symmetric_cross_entropy_loss
from lightning_objectives.losses.tversky import TverskyLoss, tversky_loss
from lightning_objectives.losses.z_score_softplus import ZScoreSoftplusLoss, z_score_softplus_loss

__all__ = [
    "AdaptiveLDRLoss",
    "AnchoredSFTLoss",
    "ArcFaceLoss",
    "AsymmetricLoss",
    "BalancedSoftmaxLoss",
    "BiTemperedLoss",
    "ClassBalancedLoss",
    "CompSumLoss",
    "ConfusionMatrixLoss",
    "CosFaceLoss",
    "DecoupledSoftmaxLoss",
    "DiceLoss",
    "DynamicFineTuningLoss",
    "EditInvariantSequenceLoss",
    "FDivergenceSFTLoss",
    "FixedPredictorRejection",
    "FocalLoss",
    "GeneralizedCrossEntropyLoss",
    "IntegratedGainLoss",
    "LDAMLoss",
    "LDRLoss",
    "LabelSmoothingLoss",
    "LogitAdjustedLoss",
    "LovaszSoftmaxLoss",
    "MannWhitneyLoss",
    "MultiFocalModifierLoss",
    "OddKOutLoss",
    "PassAtNLoss",
    "PlackettLuceDistillationLoss",
    "PolyLoss",
    "PreferenceOrientedSFTLoss",
    "ProbabilityPowerLoss",
    "ProgressivePurification",
    "ProgressiveSelfKD",
    "SelfAdjustingDiceLoss",
    "SigmoidFocalLoss",
    "SmoothAdversarialCompSumLoss",
    "SoftScoreLabelLoss",
    "SoftTopKLoss",
    "StableMaxLoss",
    "SymmetricCrossEntropyLoss",
    "TverskyLoss",
    "ZScoreSoftplusLoss",
    "adaptive_ldr_loss",
    "adaptive_temperatures",
    "anchored_sft_loss",
    "arc_face_loss",
    "asymmetric_loss",
    "balanced_softmax_loss",
    "bi_tempered_loss",
    "candidate_weights",
    "class_balanced_loss",
    "class_balanced_weights",
    "comp_sum_loss",
    "confusion_matrix_loss",
    "cos_face_loss",
    "decoupled_softmax_loss",
    "dice_loss",
    "dynamic_fine_tuning_loss",
    "edit_invariant_sequence_loss",
    "f_divergence_sft_loss",
    "focal_loss",
    "generalized_cross_entropy_loss",
    "integrated_gain_loss",
    "label_smoothing_loss",
    "ldam_loss",
    "ldr_loss",
    "logit_adjusted_loss",
    "lovasz_loss",
    "mann_whitney_loss",
    "multi_focal_modifier_loss",
    "odd_k_out_loss",
    "pass_at_n_loss",
    "plackett_luce_distillation_loss",
    "poly_loss",
    "preference_oriented_sft_loss",
    "probability_power_loss",
    "progressive_self_kd_loss",
    "purified_weights",
    "score_gaps",
    "self_adjusting_dice_loss",
    "sigmoid_focal_loss",
    "smooth_adversarial_comp_sum_loss",
    "soft_score_label_loss",
    "soft_score_labels",
    "soft_top_k_loss",
    "stable_max_loss",
    "symmetric_cross_entropy_loss",
    "tempered_softmax",
    "tversky_loss",
    "z_score_softplus_loss",
]
