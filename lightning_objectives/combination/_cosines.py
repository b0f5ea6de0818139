"""The angles between gradients, apart from their lengths."""

import torch
from torch import Tensor


def cosines(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """(K, K) the cosines between the gradients, and (K,) their lengths; float64 where the device has it.

    A gradient of 0 has the length 1, and is orthogonal to all others.
    """
    wide = torch.float32 if gradients.device.type == "mps" else torch.float64  # MPS has no float64.
    gradients = gradients.detach().to(torch.promote_types(gradients.dtype, torch.float32))
    lengths = torch.linalg.vector_norm(gradients, dim=1)
    lengths = torch.where(lengths > 0, lengths, 1)
    directions = gradients / lengths[:, None]
    products = (directions @ directions.T).to(wide)
    products.fill_diagonal_(1)
    # The diagonal is 1 whatever the numbers are, so a length must tell that they are not finite.
    return torch.where(lengths.isfinite().all(), products, torch.nan), lengths.to(wide)
