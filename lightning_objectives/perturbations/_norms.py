"""The norm of all gradients together, and their multiples, in few calls: on a GPU calls are what takes the time."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together, () in float32 or wider, on the device of the first.

    >>> total_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]], dtype=torch.bfloat16)])
    tensor(5.)
    """
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    wide = torch.float32
    norms = [n for (_, dtype), own in alike.items() for n in _foreach_norm(own, torch.promote_types(dtype, wide))]
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))
    return total


def _foreach_norm(tensors: list[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    return torch._foreach_norm(tensors, 2, dtype=dtype)


def scaled(tensors: list[Tensor], factor: Tensor) -> list[Tensor]:
    """The tensors times one number (), each on its own device and in its own type.

    >>> scaled([torch.tensor([3.0]), torch.tensor([4.0], dtype=torch.bfloat16)], torch.tensor(2.0))
    [tensor([6.]), tensor([8.], dtype=torch.bfloat16)]
    """
    if all(tensor.device == factor.device for tensor in tensors):
        return list(torch._foreach_mul(tensors, factor))
    return [tensor * factor.to(tensor.device) for tensor in tensors]
