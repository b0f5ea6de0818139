"""What calibrators share that learn a function of a probability, as of each class by itself."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.shapes import check_classes, check_shapes


def columns(logits: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each class the (N,) probabilities, and the (N,) shares of the samples that are of this class, in float64."""
    check_shapes(logits=logits, target=target)
    check_classes(logits)
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(
            f"{bad} of {len(logits)} samples have logits that are not finite: leave them out, or mend the network."
        )
    soft = target if target.is_floating_point() else F.one_hot(target.long(), logits.shape[1])
    return list(zip(probabilities(logits).T, soft.double().T))


def probabilities(logits: Tensor) -> Tensor:
    """The softmax in float64, where probabilities near 1 stay apart; in float32 on devices that have no more."""
    return logits.to(torch.float32 if logits.device.type == "mps" else torch.float64).softmax(1)


def divided_by_their_sum(values: Tensor) -> Tensor:
    """Rows (N, C) of numbers >= 0 as probabilities; 1 / C each where all are 0."""
    total = values.sum(1, keepdim=True)
    return torch.where(total > 0, values / total.where(total > 0, 1), 1 / values.shape[1])


def piecewise_linear(points: Tensor, values: Tensor, inputs: Tensor) -> Tensor:
    """A straight line between two points (..., K), constant beyond the first and the last, at inputs (..., N)."""
    after = torch.searchsorted(points, inputs.detach())
    low, high = (after - 1).clamp_min(0), after.clamp_max(points.shape[-1] - 1)
    start, width = points.gather(-1, low), points.gather(-1, high) - points.gather(-1, low)
    share = torch.where(width > 0, (inputs - start) / width.where(width > 0, 1), 0)
    return values.gather(-1, low).lerp(values.gather(-1, high), share)
