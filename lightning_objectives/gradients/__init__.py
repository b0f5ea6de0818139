"""Changes gradients before the optimizer: gradients -> gradients."""

from lightning_objectives.gradients.componentwise_grad_clip import ComponentwiseGradClip, clip_to_norm
from lightning_objectives.gradients.orthogonal_gradient import OrthogonalGradient, orthogonal_gradient

__all__ = ["ComponentwiseGradClip", "OrthogonalGradient", "clip_to_norm", "orthogonal_gradient"]
