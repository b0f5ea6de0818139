"""What distances on the samples of a batch share: features in a wide type, of length one, and their products."""

import torch
from torch import Tensor


def wide(features: Tensor) -> Tensor:
    """The features in float32, or in float64 if they are."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def of_length_one(rows: Tensor) -> Tensor:
    """The rows by their lengths; a row of zeros stays one, with a gradient of zero."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    # An epsilon would give a row of zeros, such as one behind a ReLU, a gradient of its reciprocal.
    return rows * torch.where(lengths > 0, 1 / torch.where(lengths > 0, lengths, 1.0), 0.0)


def products(rows: Tensor) -> Tensor:
    """(N, N) the scalar products of (N, D) rows, at full precision also under autocast."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ rows.T
