"""The cosines of features to the rows of a head, for losses with a margin on the angle."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.shapes import check_classes, check_shapes


def head_cosines(features: Tensor, head: nn.Module, target: Tensor) -> Tensor:
    """(N, C) cosines between the features and the weights of a linear head, float32 at least.

    Raises:
        ValueError: shapes that do not fit, or a head that is no linear layer.
    """
    check_shapes(features=features, target=target)
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.flatten(1).shape[1] != features.shape[1]:
        raise ValueError(
            f"The head {type(head).__name__} has no weight (C, {features.shape[1]}), with which the cosines are taken. "
            "Name the last linear layer of the network with head='path.to.it'."
        )
    weight = weight.flatten(1)
    check_classes(weight.T, "the head's logits")
    wide = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.to(wide)) @ F.normalize(weight.to(wide)).T
