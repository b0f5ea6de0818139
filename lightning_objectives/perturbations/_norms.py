"""The norm of all gradients together."""

from collections.abc import Iterable

import torch
from torch import Tensor


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together, () in float32 or wider, on the device of the first.

    >>> total_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]], dtype=torch.bfloat16)])
    tensor(5.)
    """
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))
    return total
