"""Re-estimates the statistics of normalisation layers by forward passes."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def trained_norms(network: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep statistics and are in training mode; frozen ones keep theirs."""
    norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if norm.training and norm.running_mean is not None]


@torch.no_grad()
def recalibrate(network: nn.Module, norms: Sequence[_BatchNorm], passes: Callable[[], None]) -> None:
    """Replace the statistics of ``norms`` by their plain mean over the batches of ``passes``, in place.

    As :func:`torch.optim.swa_utils.update_bn`, but the other layers are in evaluation mode, as they are when the
    statistics are used: dropout changes the variance of what follows it. A layer that no batch reaches keeps its
    statistics. Modes and momenta are left as they were.

    Args:
        network: what ``passes`` runs.
        norms: the layers, from :func:`trained_norms`.
        passes: runs the network over the training data.

    Raises:
        RuntimeError: ``passes`` ran no batch through any of the layers.
    """
    modes = {module: module.training for module in network.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    before = {norm: [buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms}
    try:
        for module in modes:
            module.training = False
        for norm in norms:
            norm.training = True
            norm.reset_running_stats()
            norm.momentum = None  # torch's sign for the plain mean
        passes()
    finally:
        for module, training in modes.items():
            module.training = training
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    missed = [norm for norm in norms if norm.num_batches_tracked == 0]
    if norms and len(missed) == len(norms):
        raise RuntimeError(
            "buffers='recalibrate': no training batch passed through a BatchNorm layer, so their statistics cannot be "
            "re-estimated. Use buffers='average' or 'copy'."
        )
    for norm in missed:
        for buffer, value in zip(norm.buffers(recurse=False), before[norm]):
            buffer.copy_(value)
