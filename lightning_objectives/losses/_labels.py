"""Binary cross entropies of labels, in which easy labels count less."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.losses._targets import shares


def asymmetric_terms(
    logits: Tensor, target: Tensor, *, gamma_neg: float | Tensor, gamma_pos: float, clip: float, stop_gradient: bool
) -> Tensor:
    """(N, C) terms of the asymmetric loss, for logits in float32 or better; ``gamma_neg`` may be one for each label."""
    target = shares(logits, target)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    positive_power = (gamma_pos * log_not_p).exp()
    if clip:
        log_not_p = (logits.neg().sigmoid() + clip).clamp_max(1.0).log()
        # The slope of x ** gamma at 0 is infinite for gamma < 1, and 0 * inf is NaN.
        negative_power = (logits.sigmoid() - clip).clamp_min(torch.finfo(logits.dtype).tiny) ** gamma_neg
    else:
        negative_power = (gamma_neg * log_p).exp()
    if stop_gradient:
        positive_power, negative_power = positive_power.detach(), negative_power.detach()
    # 0 * inf is NaN, so a term without a share must not count, even if its logit is infinite.
    positive_part = torch.where(target == 0, 0.0, target * positive_power * -log_p)
    negative_part = torch.where(target == 1, 0.0, (1 - target) * negative_power * -log_not_p)
    return positive_part + negative_part
