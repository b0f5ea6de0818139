"""The base class of the data modules, and the split of a data set that keeps the shares of the classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_objectives._trainer.lightning import LightningDataModule


class ImageDataModule(LightningDataModule):
    """Loads batches ``(images, target)`` of three data sets, which a subclass creates in ``setup``."""

    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]

    def __init__(self, *, batch_size: int, num_workers: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be >= 1: a loader cannot give empty batches.")
        self.batch_size = batch_size
        self.num_workers = num_workers

    def _loader(self, data: Dataset[Any], *, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(
            data,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled batches of the training set."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the validation set."""
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the test set."""
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the test set."""
        return self._loader(self.test)


def stratified_split(target: Tensor, fractions: Sequence[float], *, seed: int) -> list[Tensor]:
    """Split positions at random so that every part has the same share of each class, to within a sample.

    Args:
        target: (N,) class indices.
        fractions: the share of each part except the first, which gets the rest.
        seed: of the generator that draws this split and nothing else.

    Returns:
        The sorted positions of each part: first the rest, then one part for each of ``fractions``.

    Raises:
        ValueError: a fraction is negative, or the fractions leave nothing for the first part.

    >>> [len(part) for part in stratified_split(torch.arange(100) % 10, [0.1, 0.2], seed=0)]
    [70, 10, 20]
    """
    if min(fractions) < 0 or sum(fractions) >= 1:
        raise ValueError(
            f"fractions {tuple(fractions)} must be >= 0 with a sum < 1, because the first part gets what they leave."
        )
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in range(len(fractions) + 1)]
    for label in sorted(set(target.tolist())):
        members = (target == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        sizes = [round(fraction * len(members)) for fraction in fractions]
        for part, share in zip(parts, members.split([len(members) - sum(sizes), *sizes])):
            part.append(share)
    return [torch.cat(part).sort().values for part in parts]
