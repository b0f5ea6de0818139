"""Reads a data loader once more: each sample once, split among the ranks, without a trace in the loader."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_objectives._trainer.random import Streams
from lightning_objectives._trainer.ranks import world_size

_SETTINGS = (
    *("dataset", "batch_size", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
    *("multiprocessing_context", "prefetch_factor"),
)
"""What a loader for other samples has of the one that it stands for."""


class OnePass:
    """Gives the batches of a loader so that each sample of this process comes once, in an order that is no draw.

    A loader that shuffles, or goes through its data set in order, is read in the order of the data set, all of it, also
    if it drops its last batch. Of a ``DistributedSampler`` each rank gets its share without the samples that are
    repeated so that the shares are equal. Any other loader is read as it is.

    Args:
        loader: the data loader, or any iterable.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.doubt = ""
        """Why some samples may count more than once, or be left out; empty if neither can happen."""
        self.batches: Iterable[Any] = self._read_anew(loader)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # a TypeError if the length is unknown

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def _read_anew(self, loader: Any) -> Iterable[Any]:
        sampler = getattr(loader, "sampler", None)
        if _is_usual(loader):
            rows = len(loader.dataset)
            if isinstance(sampler, DistributedSampler) and sampler.dataset is loader.dataset:
                return _with_samples(loader, range(sampler.rank, rows, sampler.num_replicas))
            if isinstance(sampler, DistributedSampler) and not sampler.drop_last:  # It wraps another sampler.
                own = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
                return _with_samples(loader, _First(sampler, own))
            if world_size() == 1 and _takes_all(sampler, rows):
                return _with_samples(loader, range(rows))
        if world_size() > 1:
            kind = type(loader if sampler is None else sampler).__name__
            self.doubt = (
                f"the batches of each process are taken as its {kind} gives them, so that a sample that several "
                "processes get counts once for each"
            )
        if isinstance(loader, DataLoader):
            loader = copy(loader)
            loader._iterator = None  # With persistent workers, iterating would restart the epoch that is running.
        return loader  # type: ignore[no-any-return]


class _First:
    """The first samples that a sampler gives."""

    def __init__(self, sampler: Iterable[Any], count: int) -> None:
        self.sampler, self.count = sampler, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return islice(self.sampler, self.count)


def _is_usual(loader: Any) -> bool:
    """Whether torch's own code makes the batches, of a fixed size, from a data set with a length."""
    usual = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
    if not usual or isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return False
    return loader.batch_size is not None and hasattr(loader.dataset, "__len__")


def _takes_all(sampler: Any, rows: int) -> bool:
    """Whether an epoch of the sampler is the data set, each sample once."""
    shuffles = type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == rows
    return shuffles or type(sampler) is SequentialSampler


def _with_samples(loader: Any, samples: Iterable[Any]) -> DataLoader[Any]:
    """A loader of the same data set and form for other samples."""
    settings = {name: getattr(loader, name) for name in _SETTINGS}
    return DataLoader(**settings, sampler=samples)


@contextmanager
def own_draws(loader: Any, seed: int, device: torch.device) -> Iterator[None]:
    """Seed all global random streams for a while; then they, and the loader's own generators, are as before."""
    streams, generators = Streams(device), generators_of(loader)
    states = [generator.get_state() for generator in generators]
    try:
        np.random.seed(seed % 2**32)
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            with torch.get_device_module(device).device(device):
                torch.get_device_module(device).manual_seed(seed)
        yield
    finally:
        streams.restore()
        for generator, state in zip(generators, states):
            generator.set_state(state)


def generators_of(loader: Any) -> list[Any]:
    """The generators that a loader and its samplers draw from."""
    samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    generators = (getattr(owner, "generator", None) for owner in (loader, *samplers))
    return list({id(generator): generator for generator in generators if generator is not None}.values())
