"""Loads CIFAR-10 and CIFAR-100 from the pickled batches of their authors."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import Subset

from lightning_objectives.data._module import ImageDataModule, stratified_split


class _CIFARDataModule(ImageDataModule):
    """Loads, splits and augments either of the two data sets."""

    dataset: ClassVar[str]
    """The name of the class in torchvision.datasets."""
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    """Mean and standard deviation of each channel over the training set, in [0, 1]."""

    def __init__(
        self,
        *,
        data_dir: str | Path = "data",
        download: bool = False,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        augment: bool = True,
        seed: int = 0,
        num_workers: int = 2,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        stratified_split(torch.zeros(1), [val_fraction], seed=seed)  # raises now if the fraction is wrong, not in setup
        self.data_dir = data_dir
        self.download = download
        self.val_fraction = val_fraction
        self.augment = augment
        self.seed = seed

    def prepare_data(self) -> None:
        """Download the files that are missing if ``download=True``; Lightning calls it in one process only."""
        if self.download:
            for train in (True, False):
                self._class()(self.data_dir, train=train, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read the files and split off the validation set, the same way for every stage."""
        transforms = _torchvision().transforms
        plain = [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        shifted = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        augmented = self._read(train=True, transform=transforms.Compose(shifted * self.augment + plain))
        fixed = self._read(train=True, transform=transforms.Compose(plain))
        train, val = stratified_split(torch.tensor(augmented.targets), [self.val_fraction], seed=self.seed)
        self.train, self.val = Subset(augmented, train.tolist()), Subset(fixed, val.tolist())
        self.test = self._read(train=False, transform=transforms.Compose(plain))

    def _class(self) -> Any:
        return getattr(_torchvision().datasets, self.dataset)

    def _read(self, *, train: bool, transform: Any) -> Any:
        cls = self._class()
        try:
            return cls(self.data_dir, train=train, transform=transform)
        except RuntimeError as error:  # torchvision compares checksums before it opens a pickle, which could run code
            raise FileNotFoundError(
                f"data_dir={str(self.data_dir)!r} holds no sound {cls.base_folder}/ ({error}), without which there is "
                "nothing to train on: give the folder that holds it, or download=True."
            ) from error


class CIFAR10DataModule(_CIFARDataModule):
    """Loads CIFAR-10, 60,000 photographs of 10 classes, as images (3, 32, 32) float32, normalised by channel.

    Args:
        data_dir: folder that holds ``cifar-10-batches-py``.
        download: let torchvision download it into ``data_dir`` if it is missing.
        batch_size: of every loader.
        val_fraction: the share of the 50,000 training images in the validation set, the same for each class.
        augment: apply the standard augmentation to the training set: pad by 4 pixels, crop, and flip.
        seed: of the split, which depends on nothing else.
        num_workers: number of processes that load and augment.

    Raises:
        ValueError: the batch size is below 1, or the fraction outside [0, 1).
        FileNotFoundError: in ``setup``, a file is missing or not the original one.
        ModuleNotFoundError: torchvision is not installed; the extra ``examples`` has it.

    Paper: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """

    dataset = "CIFAR10"
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class CIFAR100DataModule(_CIFARDataModule):
    """Loads CIFAR-100, 60,000 photographs of 100 classes, as images (3, 32, 32) float32, normalised by channel.

    Args:
        data_dir: folder that holds ``cifar-100-python``.
        download: let torchvision download it into ``data_dir`` if it is missing.
        batch_size: of every loader.
        val_fraction: the share of the 50,000 training images in the validation set, the same for each class.
        augment: apply the standard augmentation to the training set: pad by 4 pixels, crop, and flip.
        seed: of the split, which depends on nothing else.
        num_workers: number of processes that load and augment.

    Raises:
        ValueError: the batch size is below 1, or the fraction outside [0, 1).
        FileNotFoundError: in ``setup``, a file is missing or not the original one.
        ModuleNotFoundError: torchvision is not installed; the extra ``examples`` has it.

    Paper: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """

    dataset = "CIFAR100"
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def _torchvision() -> Any:
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The CIFAR data modules need torchvision: pip install 'lightning-objectives[examples]'."
        ) from error
    return torchvision
