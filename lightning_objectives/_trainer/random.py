"""Draws that leave the training's random stream where it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def private_stream(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """A random stream of one's own, on the CPU and on one device, for code that takes no generator.

    >>> before = torch.get_rng_state()
    >>> with private_stream(1):
    ...     first = torch.rand(2)
    >>> with private_stream(1):
    ...     torch.equal(torch.rand(2), first), torch.equal(torch.get_rng_state(), before)
    (True, False)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    device = torch.device(device)
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(seed)
        yield
