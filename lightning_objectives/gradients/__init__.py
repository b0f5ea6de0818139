"""Changes gradients before the optimizer: gradients -> gradients."""

from lightning_objectives.gradients.adaptive_gradient_clipping import AdaptiveGradientClipping, clip_to_weights
from lightning_objectives.gradients.adaptive_spike_clip import AdaptiveSpikeClip, clip_spikes
from lightning_objectives.gradients.componentwise_grad_clip import ComponentwiseGradClip, clip_to_norm
from lightning_objectives.gradients.grad_norm_stabilizer import GradNormStabilizer
from lightning_objectives.gradients.orthogonal_gradient import OrthogonalGradient, orthogonal_gradient
from lightning_objectives.gradients.parameter_selection import GradientParameterSelection, selected_weights

__all__ = [
    "AdaptiveGradientClipping",
    "AdaptiveSpikeClip",
    "ComponentwiseGradClip",
    "GradNormStabilizer",
    "GradientParameterSelection",
    "OrthogonalGradient",
    "clip_spikes",
    "clip_to_norm",
    "clip_to_weights",
    "orthogonal_gradient",
    "selected_weights",
]
