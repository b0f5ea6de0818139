"""What adapters share: the normalization layers of a network, and when a batch has statistics of its own."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, *filter(None, [getattr(nn, "RMSNorm", None)]))
"""Torch's normalization layers; RMSNorm is newer than the lowest version of torch."""


def affine_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The scales and shifts of the normalization layers, by name.

    >>> list(affine_parameters(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))))
    ['1.weight', '1.bias']
    """
    own = {id(p) for layer in network.modules() if isinstance(layer, NORMS) for p in layer.parameters(recurse=False)}
    return {name: parameter for name, parameter in network.named_parameters() if id(parameter) in own}


def check_count(inputs: Tensor) -> None:
    """Refuse a batch with fewer than two values for each channel: they have no variance.

    Raises:
        ValueError: with the shape, and the way out.

    >>> check_count(nn.Parameter().new_zeros(2, 3))
    """
    if inputs.numel() < 2 * inputs.shape[1]:
        raise ValueError(
            f"A BatchNorm layer got inputs of the shape {tuple(inputs.shape)}, with fewer than two values for each "
            "channel, so the batch has no variance to normalize with. Use larger test batches, and drop_last=True in "
            "the test loader if only the last one is too small."
        )
