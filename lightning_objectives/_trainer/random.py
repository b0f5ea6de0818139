"""Draws numbers without changing the random stream of the training, and saves and restores that stream."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def private_stream(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Gives code that takes no generator a random stream of its own, on the CPU and on one device.

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
        # `torch.manual_seed` would also seed the other devices, whose streams belong to the training.
        torch.default_generator.manual_seed(seed)
        if devices:
            backend = torch.get_device_module(device)
            with backend.device(device):
                backend.manual_seed(seed)
        yield


def batch_seed(seed: int, trainer: Any, *, by_rank: bool = True, stream: int = 0) -> int:
    """The seed for the draws of one batch, which depends on the number of the batch and, ``by_rank``, on the rank.

    Draws of another ``stream`` have nothing in common with these.

    A resumed training draws the same for the same batch, so nothing has to be saved.
    """
    rank, batch = trainer.global_rank if by_rank else 0, trainer.fit_loop.total_batch_idx
    if not seed and not rank and not stream:
        return int(batch)
    return mixed_seed(seed, rank, batch, *([stream] if stream else []))


def mixed_seed(seed: int, *numbers: int) -> int:
    """The seed for draws that depend on other numbers >= 0 too.

    >>> mixed_seed(0, 1) == mixed_seed(0, 1), mixed_seed(0, 1) == mixed_seed(1, 0)
    (True, False)
    """
    # A generator of the CPU reads 32 bits of its seed, so each of them must depend on all numbers.
    return int(np.random.SeedSequence([seed % 2**64, *numbers]).generate_state(1, np.uint64)[0]) % 2**63


class Streams:
    """The states of the global random streams at one moment, on the CPU and on one device.

    It is ten times as fast as :func:`random_state`, whose result can be saved.

    >>> streams = Streams(torch.device("cpu"))
    >>> first = torch.rand(2), np.random.rand(), random.random()
    >>> streams.restore()
    >>> torch.equal(torch.rand(2), first[0]), np.random.rand() == first[1], random.random() == first[2]
    (True, True, True)
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._backend = None if device.type == "cpu" else torch.get_device_module(device)
        self._of_device = None if self._backend is None else self._backend.get_rng_state(device)
        self._of_host = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def restore(self) -> None:
        """Let the streams go on from that moment."""
        torch_state, numpy_state, python_state = self._of_host
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if self._backend is not None:
            self._backend.set_rng_state(self._of_device, self.device)


def random_state() -> dict[str, Any]:
    """The states of the global generators, in types that ``torch.load(weights_only=True)`` reads."""
    state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`random_state` returned; if that fails, no state changes.

    >>> state = random_state()
    >>> first = torch.rand(2), np.random.rand(2), random.gauss(0, 1)
    >>> set_random_state(state)
    >>> bool((torch.rand(2) == first[0]).all() and (np.random.rand(2) == first[1]).all())
    True
    """
    before = random_state()
    try:
        _set(state)
    except Exception:
        _set(before)
        raise


def _set(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
