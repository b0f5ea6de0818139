"""Re-estimates the statistics of normalisation layers by forward passes."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Passes = Callable[[Sequence[_BatchNorm]], None]
"""Runs a network over its training data; the argument is the list of layers whose statistics it re-estimates."""


def trained_norms(network: nn.Module) -> list[_BatchNorm]:
    """Find the BatchNorm layers that update their statistics now; layers in evaluation mode count as frozen."""
    norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if norm.training and norm.running_mean is not None]


@torch.no_grad()
def recalibrate(network: nn.Module, norms: Sequence[_BatchNorm], passes: Passes) -> None:
    """Replace the statistics of ``norms`` by their plain mean over the batches of ``passes``, in place.

    It does what :func:`torch.optim.swa_utils.update_bn` does, but with the other layers in evaluation mode, as they
    are when the statistics are used: dropout changes the variance of its output. A layer that no batch reaches keeps
    its statistics. Modes and momenta stay as they were.

    Args:
        network: the network that ``passes`` runs.
        norms: the layers, from :func:`trained_norms`.
        passes: runs the network over the training data, and lets the ranks share the statistics of ``norms``.

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
            norm.momentum = None  # None tells torch to take the plain mean.
        passes(norms)
    finally:
        for module, training in modes.items():
            module.training = training
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    idle = [norm for norm in norms if norm.num_batches_tracked == 0]
    if norms and len(idle) == len(norms):
        raise RuntimeError(
            "buffers='recalibrate': no training batch passed through a BatchNorm layer, so their statistics cannot be "
            "re-estimated. Use buffers='average' or 'copy'."
        )
    for norm in idle:
        for buffer, value in zip(norm.buffers(recurse=False), before[norm]):
            buffer.copy_(value)
